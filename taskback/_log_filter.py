"""The task on each log record, wherever it is logged."""

import logging

from taskback._public import lives_in
from taskback._task import running_task


@lives_in("taskback")
class TaskLogFilter(logging.Filter):
    """Gives every record the attributes `task_id`, `task_type` and `worker_pid`, for a format to name.

    Records of workers have them anyway. With this filter on a handler, those that are logged in this process have them,
    too: those of a task in a thread or an event loop that task's, all others None and this process's number.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Set what is not set; every record passes."""
        if not hasattr(record, "worker_pid"):
            task = running_task.get()
            found = (
                {"task_id": None, "task_type": None} if task is None else {"task_id": task.id, "task_type": task.type}
            )
            found["worker_pid"] = record.process  # type: ignore[assignment]
            record.__dict__.update({**found, **record.__dict__})
        return True
