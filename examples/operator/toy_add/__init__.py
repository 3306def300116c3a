"""ToyAdd: y = x + scale · other."""
