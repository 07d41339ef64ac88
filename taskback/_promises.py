"""What a backend keeps of the contract, as data.

The contract tests are steered by it and the README's table is made from it, so that neither can say something
else than the code does.
"""

from dataclasses import dataclass, field, fields

from taskback._public import lives_in


def _promise(words: str) -> bool:
    return field(default=False, metadata={"words": words})


@lives_in("taskback")
@dataclass(frozen=True, slots=True, kw_only=True)
class Promises:
    """What this backend keeps; each field is True where it does.

    `Promises.words(name)` says in a sentence what a field promises.
    """

    returns_before_run: bool = _promise("`submit` returns before the task has run")
    frees_loop: bool = _promise("a CPU-heavy handler leaves the event loop free")
    uses_cores: bool = _promise("handlers run on several cores at once")
    live_objects: bool = _promise("a task may hold live objects, which the handler gets as they are")
    delay: bool = _promise("the options `delay` and `not_before` are kept")
    priority: bool = _promise("the option `priority` is kept")
    timeout: bool = _promise("a time limit stops a handler that runs Python code")
    cancels_running: bool = _promise("`cancel()` stops a running handler that runs Python code")
    stops_anything: bool = _promise("what will not stop (C code, a loop that swallows exceptions) is killed")
    limits_beside_busy_loop: bool = _promise("time limits are kept on time beside a busy event loop, too")
    exact_start: bool = _promise("RUNNING and `started_at` tell when the handler was really called")
    progress: bool = _promise("`report()` reaches the handle while the task runs")
    survives_worker_death: bool = _promise("a dead worker costs its own task alone, told with pid and signal")
    peak_memory: bool = _promise("the error of a dead worker tells its peak memory")
    kills_children: bool = _promise("what a killed handler has started is killed with it")
    kills_detached: bool = _promise("... daemons and children with a session of their own, too")
    bounded_shutdown: bool = _promise("`shutdown` returns within timeout + grace + 1 s, whatever the handlers do")
    exits_without_shutdown: bool = _promise("a program that forgets `shutdown` still exits")
    no_orphans: bool = _promise("no worker outlives a killed parent")
    no_orphans_in_c_code: bool = _promise("... not even one in C code that holds the GIL")
    no_main_guard: bool = _promise('a script needs no `if __name__ == "__main__":`')
    daemonic_parent: bool = _promise("works in a daemonic process of `multiprocessing`")
    stacks: bool = _promise("`TaskTimeoutError.stack` tells where the task was")
    idle_costs_nothing: bool = _promise("an idle backend uses no CPU")

    @classmethod
    def words(cls, name: str) -> str:
        """What the field `name` promises, in a sentence.

        Args:
            name (str): A field of this class.

        Returns:
            str: The sentence, in Markdown.

        Raises:
            KeyError: There is no such field.
        """
        return {each.name: str(each.metadata["words"]) for each in fields(cls)}[name]
