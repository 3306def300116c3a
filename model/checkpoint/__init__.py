"""Reading checkpoints: their files, how tensors are stored in them, and what feeds which input."""
