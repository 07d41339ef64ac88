"""What `benchmarks.faults` needs beside it: handlers that misbehave, parents to be killed, a watch on processes."""
