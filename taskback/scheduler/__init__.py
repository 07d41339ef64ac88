"""Which task may start next: decisions, without threads, I/O or a clock of their own."""
