"""What the real thing is tried with; workers import this and nothing beside it."""

import ctypes
import os
import time
from typing import Any


def act(task: dict[str, Any]) -> Any:
    """Do what the task says."""
    if task["do"] == "loop":
        while True:
            time.sleep(0)
    if task["do"] == "hold":  # the GIL
        ctypes.PyDLL(None).sleep(600)
    if task["do"] == "daemon":
        told, tell = os.pipe()
        if os.fork() == 0:
            os.close(told)
            os.setsid()
            if os.fork() == 0:
                os.write(tell, str(os.getpid()).encode())
                os.close(tell)
                time.sleep(600)
            os._exit(0)
        os.close(tell)
        return os.getpid(), int(os.read(told, 100))
    return os.getpid()
