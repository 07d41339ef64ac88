"""Progress on standard error: a bar on a terminal, by rich where it is installed, elsewhere a line now and then."""

import os
import sys
from datetime import timedelta
from typing import Final

from taskback.cli.complaints import say
from taskback.cli.streams import is_terminal
from taskback.cli.tally import Figures

BAR_INTERVAL: Final = 0.2  # seconds
LINE_INTERVAL: Final = 10.0  # seconds
_SHOW_CURSOR: Final = b"\x1b[?25h"


class Progress:
    """A plain line now and then, and what is said meanwhile. Used on the main thread alone.

    Attributes:
        interval (float): Seconds from one showing to the next.
    """

    interval = LINE_INTERVAL

    def show(self, figures: Figures) -> None:
        """Show how the run stands."""
        say(f"{_done(figures)} done, {_details(figures)}")

    def say(self, text: str) -> None:
        """Write a line that stays."""
        say(text)

    def close(self) -> None:
        """Show nothing more."""

    def last_words(self) -> None:
        """Leave the terminal in order; called by a signal handler when the process is about to die."""


class BarProgress(Progress):
    """A bar in place of the lines, drawn by rich, which is imported when there is one to draw.

    rich draws when it is told to, and not from a thread of its own: a worker that is forked while such a thread
    holds rich's lock would inherit the lock, held for ever.
    """

    interval = BAR_INTERVAL

    def __init__(self, *, in_process: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._bar = Bar(
            TextColumn("{task.fields[done]}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[details]}", markup=False),
            console=self._console,
            auto_refresh=False,
            transient=True,
            expand=True,
            # What a handler prints in this process goes above the bar. A worker must not inherit such a stream.
            redirect_stdout=in_process and is_terminal(sys.stdout),
            redirect_stderr=in_process,
        )
        self._task = self._bar.add_task("", total=None, done="starting", details="")
        self._bar.start()

    def show(self, figures: Figures) -> None:
        """Draw the bar."""
        self._bar.update(
            self._task,
            completed=figures.done,
            total=figures.total,
            done=_done(figures),
            details=_details(figures),
            refresh=True,
        )

    def say(self, text: str) -> None:
        """Write a line above the bar."""
        self._console.print(f"taskback: {text}")

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()

    def last_words(self) -> None:
        """Show the cursor again, which rich has hidden."""
        os.write(2, _SHOW_CURSOR)


def open_progress(*, in_process: bool, results_on_terminal: bool) -> Progress:
    """Choose how to show progress.

    Args:
        in_process (bool): Handlers run in this process.
        results_on_terminal (bool): Result lines go to a terminal, where they and a bar would mix.
    """
    if not is_terminal(sys.stderr) or os.environ.get("TERM") == "dumb" or results_on_terminal:
        return Progress()
    try:
        return BarProgress(in_process=in_process)
    except ImportError:  # rich comes with the extra `cli`
        return Progress()


def _done(figures: Figures) -> str:
    if figures.total is None:
        return f"{figures.done:,}"
    return f"{figures.done:,} of {'' if figures.exact else 'about '}{figures.total:,}"


def _details(figures: Figures) -> str:
    text = f"{figures.failed:,} failed, {figures.running:,} running, {figures.rate:,.1f}/s"
    if figures.seconds_left is not None:
        text += f", {timedelta(seconds=round(figures.seconds_left))} left"
    return text
