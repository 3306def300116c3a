"""Edits of exported graphs, one a file; each changes the model that it is given."""
