"""What is run: cases, probes, the eager model and the backend, block by block."""
