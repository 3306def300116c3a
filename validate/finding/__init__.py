"""Where a fault is: the first bad block, its operator, a small input."""
