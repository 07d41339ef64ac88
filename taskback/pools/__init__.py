"""Where handlers run: lanes, each with one worker, and executors that can be used by themselves."""

import typing

from taskback import _public

if typing.TYPE_CHECKING:
    from taskback.pools.process_pool import ProcessPool
    from taskback.pools.thread_pool import ThreadPool

__all__ = ["ProcessPool", "ThreadPool"]

__getattr__ = _public.finder(__name__, {"process_pool": ("ProcessPool",), "thread_pool": ("ThreadPool",)})


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
