"""Sparse MLA: absorbed latent attention over selected positions."""
