"""What a checkpoint will need before anything is exported: memory, GPUs, disk, a bound on speed."""
