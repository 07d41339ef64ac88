"""Where tasks run: one file a backend."""
