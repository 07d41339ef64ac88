"""Which task may start next: decisions, without threads, I/O or a clock of their own.

`scheduler.Scheduler` makes them; `pressure` and `trouble` stand beside it.
"""
