"""Building engines and running bundles."""
