"""What is compared beside a run: weights, graphs, transformers' own model."""
