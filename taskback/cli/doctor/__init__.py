"""`taskback doctor`: what this machine grants of the mechanism, each tried, and what that means for the promises."""
