"""What things cost, beside other pools in the same run: `scripts/bench`. See `benchmarks/__main__.py`."""
