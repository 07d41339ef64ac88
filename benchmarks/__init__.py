"""What things cost, as ratios to the stock pools in the same run: `scripts/bench-threads`."""
