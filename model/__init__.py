"""The eager PyTorch reference, its config, and reading checkpoints."""
