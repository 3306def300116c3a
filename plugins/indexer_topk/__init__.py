"""Indexer top-k: the cached positions each new token may attend to."""
