"""Python runtimes: one class a backend."""
