"""A host's own backend beneath a durable one: how its handler knows which task it has, and tells that it has ended.

Such a backend takes a dict and calls its handler with it, and knows of no ids. So the dict has one more key on its way,
which is gone when the handler is called.
"""

from collections.abc import Callable
from typing import Any, Final

from taskback._call import Handler, is_awaitable
from taskback._task import Task
from taskback.backends._marking import Marks

KEY: Final = "_taskback_id"

Told = Callable[[str, BaseException | None], None]  # the task's id, and what its handler raised


class Named:
    """A handler that marks its calls and tells of their ends.

    Args:
        handler (Handler): The host's.
        marks (Marks): Of this life.
        told (Told): Called with each end, on the thread of the call.
    """

    def __init__(self, handler: Handler, marks: Marks, told: Told) -> None:
        self.__wrapped__ = handler
        self._marks = marks
        self._told = told

    def __call__(self, task: Task) -> Any:
        task = dict(task)
        task_id = task.pop(KEY, None)
        if task_id is None:  # submitted past the durable backend
            return self.__wrapped__(task)
        end = self._marks.begin(task_id)
        try:
            result = self.__wrapped__(task)
        except BaseException as error:
            end()
            self._told(task_id, error)
            raise
        if is_awaitable(result):
            return self._follow(result, task_id, end)
        end()
        self._told(task_id, None)
        return result

    async def _follow(self, result: Any, task_id: str, end: Callable[[], None]) -> Any:
        raised: BaseException | None = None
        try:
            return await result
        except BaseException as error:
            raised = error
            raise
        finally:
            end()
            self._told(task_id, raised)
            del raised
