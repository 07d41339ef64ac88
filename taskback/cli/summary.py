"""The last lines of a run, and its exit status."""

from dataclasses import dataclass, field
from typing import Final

from taskback.cli.arguments import Options
from taskback.cli.complaints import INTERRUPTED, OK, SOME_FAILED, CommandError, tasks
from taskback.cli.results_file import Results
from taskback.cli.tally import SUCCEEDED, Tally

LINES_NAMED: Final = 20  # of the unfinished ones


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended.

    Attributes:
        interrupted (bool): A signal came.
        failure (CommandError | None): What ended it early.
        unfinished (list[int]): The lines that were begun or waiting, and have no result.
        lines_read (int): How far the input was read.
        input_over (bool): It was read to its end.
        threads_left (bool): A handler's thread did not stop.
    """

    interrupted: bool
    failure: CommandError | None = None
    unfinished: list[int] = field(default_factory=list)
    lines_read: int = 0
    input_over: bool = True
    threads_left: bool = False

    @property
    def complete(self) -> bool:
        """Whether every line of the input has its result."""
        return self.input_over and not self.unfinished


def exit_status(ending: Ending, tally: Tally) -> int:
    """What the shell is told; it speaks of the whole results file, earlier runs included."""
    if ending.interrupted and not ending.complete:
        return INTERRUPTED
    if ending.failure is not None:
        return ending.failure.status
    return OK if tally.all_succeeded else SOME_FAILED


def summarize(ending: Ending, tally: Tally, options: Options, results: Results) -> list[str]:
    """The summary, line by line."""
    lines = [*_problems(tally), _counts(tally)]
    if ending.failure is not None:
        lines.append(str(ending.failure))
    highest_finished = results.finished.highest
    if ending.input_over and highest_finished > ending.lines_read:
        lines.append(
            f"{options.out} has results for lines beyond the end of {options.tasks_name} (line {highest_finished:,}, "
            f"of {ending.lines_read:,}): is it the same input?"
        )
    if not ending.complete:
        lines += [_unfinished(ending, options), _how_to_resume(options, results)]
    elif ending.interrupted:
        lines.append("interrupted, but everything was finished")
    return lines


def _problems(tally: Tally) -> list[str]:
    more = tally.now.total() - tally.now[SUCCEEDED] - len(tally.problems)
    return [*tally.problems, *([f"... and {more:,} more"] if more else [])]


def _counts(tally: Tally) -> str:
    counts = ", ".join(f"{count:,} {state.replace('_', ' ')}" for state, count in sorted(tally.now.items()))
    text = f"{tasks(tally.now.total())} in {tally.seconds:.1f} s" + (f": {counts}" if counts else "")
    earlier = tally.earlier.total()
    if not earlier:
        return text
    return f"{text}; {earlier:,} done earlier, {earlier - tally.earlier[SUCCEEDED]:,} of which did not succeed"


def _unfinished(ending: Ending, options: Options) -> str:
    began = "interrupted" if ending.interrupted else "ended early"
    begun = ", ".join(str(line) for line in ending.unfinished[:LINES_NAMED])
    if len(ending.unfinished) > LINES_NAMED:
        begun += ", ..."
    parts = [f"{tasks(len(ending.unfinished))} begun or waiting (line {begun})"] if begun else []
    if not ending.input_over:
        parts.append(f"all after line {ending.lines_read:,} of {options.tasks_name}")
    return f"{began}; unfinished: {' and '.join(parts)}"


def _how_to_resume(options: Options, results: Results) -> str:
    if options.resume_command is None or not results.resumable:
        return f"a run cannot be resumed when its results go to {results.name}; give it --out FILE"
    if options.tasks == "-":
        return f"to resume, pipe the same input into: {options.resume_command}"
    return f"to resume: {options.resume_command}"
