"""Random tasks on all backends, while things are killed, stopped and starved; and what must hold all the same."""
