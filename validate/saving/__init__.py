"""Saved runs: what is kept of one, two of them compared, and the same for Polygraphy."""
