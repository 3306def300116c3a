"""Comparing a backend with the eager model and reporting the difference."""
