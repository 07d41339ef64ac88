"""Where handlers run: lanes, each with one worker, and executors that can be used by themselves."""

from taskback.pools.process_pool import ProcessPool
from taskback.pools.thread_pool import ThreadPool

__all__ = ["ProcessPool", "ThreadPool"]

for _name in __all__:  # pickles and texts name taskback.pools.X, so that files can move
    globals()[_name].__module__ = __name__
