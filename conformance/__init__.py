"""What pools do when something goes wrong: one probe a row, run on taskback and on each peer; see `__main__`."""
