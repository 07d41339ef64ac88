"""What runs in worker processes, and nothing else: it stays light."""
