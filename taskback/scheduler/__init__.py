"""Which task may start next: decisions, without threads, I/O or a clock of their own.

`scheduler.Scheduler` makes them; `queue` is what the backends have so far.
"""
