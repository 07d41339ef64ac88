"""A place where a handler stands until the test lets it go, in whatever thread or process it runs.

Two named pipes in the test's own directory: handlers say on one that they have begun, and wait until there is
something to read on the other. Nobody takes it out, so an open gate is open for all. Workers import this file.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import time
from pathlib import Path
from typing import Final

from taskback import TaskCancelled

PATIENCE: Final = 20.0  # seconds after which a test that waits gives up


class Gate:
    """The test's side. `path` goes into the task."""

    def __init__(self, directory: Path, name: str = "gate") -> None:
        self.path = str(directory / name)
        for suffix in (".said", ".open"):
            os.mkfifo(self.path + suffix)
        # Both ends of each: no handler's end of file or broken pipe depends on which others there are.
        self._said = os.open(self.path + ".said", os.O_RDWR | os.O_NONBLOCK)
        self._open = os.open(self.path + ".open", os.O_RDWR | os.O_NONBLOCK)
        self._lines: list[str] = []
        self._rest = ""

    def open(self) -> None:
        """Let all handlers go, those that come later too."""
        os.write(self._open, b"x")

    def wait_said(self, count: int = 1) -> list[str]:
        """Block until handlers have said `count` things; gives and forgets them."""
        deadline = time.monotonic() + PATIENCE
        while len(self._lines) < count:
            if not select.select([self._said], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"handlers said only {self._lines}, not {count} things")
            self._read()
        return self._taken(count)

    async def said(self, count: int = 1) -> list[str]:
        """The same, without blocking the event loop."""
        loop = asyncio.get_running_loop()
        more = asyncio.Event()
        loop.add_reader(self._said, more.set)
        try:
            async with asyncio.timeout(PATIENCE):
                while len(self._lines) < count:
                    await more.wait()
                    more.clear()
                    self._read()
        finally:
            loop.remove_reader(self._said)
        return self._taken(count)

    def heard(self) -> list[str]:
        """What handlers have said by now, and nobody has waited for."""
        self._read()
        return self._taken(len(self._lines))

    def close(self) -> None:
        """Let all go for good."""
        self.open()
        os.close(self._said)
        os.close(self._open)

    def _read(self) -> None:
        try:
            text = self._rest + os.read(self._said, 65536).decode()
        except BlockingIOError:
            return
        *lines, self._rest = text.split("\n")
        self._lines += lines

    def _taken(self, count: int) -> list[str]:
        taken, self._lines = self._lines[:count], self._lines[count:]
        return taken


# --- the handlers' side ---


def say(path: str, text: object = "begun") -> None:
    """Tell the test something; short lines arrive whole."""
    said = os.open(path + ".said", os.O_WRONLY)
    try:
        os.write(said, f"{text}\n".encode())
    finally:
        os.close(said)


def hold(path: str, text: object = "begun") -> None:
    """Say so and stand at the gate in a loop of Python code, which can be stopped at each step."""
    gate = os.open(path + ".open", os.O_RDONLY | os.O_NONBLOCK)
    try:
        say(path, text)
        while not select.select([gate], [], [], 0.01)[0]:
            pass
    finally:
        os.close(gate)


def hold_in_c(path: str) -> None:
    """Say so and stand at the gate in one call of C code, which takes no exception, and no signal either."""
    gate = os.open(path + ".open", os.O_RDONLY | os.O_NONBLOCK)
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    said = False
    try:
        while True:
            try:
                if not said:
                    said = True
                    say(path)
                select.select([gate], [], [])
                return
            except TaskCancelled:  # a thread's, which came before it was in there; it comes once
                continue
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(gate)


async def hold_async(path: str, text: object = "begun") -> None:
    """Say so and stand at the gate without blocking the event loop."""
    loop = asyncio.get_running_loop()
    opened = asyncio.Event()
    gate = os.open(path + ".open", os.O_RDONLY | os.O_NONBLOCK)
    loop.add_reader(gate, opened.set)
    try:
        say(path, text)
        await opened.wait()
    finally:
        loop.remove_reader(gate)
        os.close(gate)


async def hold_stubbornly(path: str) -> None:
    """The same, whatever cancels it."""
    holding = asyncio.ensure_future(hold_async(path))
    while not holding.done():
        try:
            await asyncio.shield(holding)
        except asyncio.CancelledError:
            continue
