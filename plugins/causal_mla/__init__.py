"""Causal MLA: absorbed latent attention over everything before a query, and itself."""
