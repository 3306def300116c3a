"""The operators that TensorRT lacks: one folder each, shared parts in common/."""
