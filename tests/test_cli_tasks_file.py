"""Reading tasks: every line is a task or a clear complaint, and only one is in memory at a time."""

from __future__ import annotations

import io
import itertools
import json
import os
import threading
from pathlib import Path

import pytest

from taskback.cli.source import BadIdError, Source, check_id, source_of
from taskback.cli.tasks_file import BadLineError, Input, Line, ReadingStoppedError, open_tasks, parse_task, read_lines
from taskback.cli.window import Window


def tasks_of(data: bytes) -> list[object]:
    """What becomes of each line that is not empty: a task, or the text of the complaint."""

    def outcome(line: Line) -> object:
        try:
            return parse_task(line)
        except BadLineError as error:
            return str(error)

    return [outcome(line) for line in read_lines(io.BytesIO(data)) if line.data]


def test_lines_are_numbered_with_the_empty_ones() -> None:
    """The number of a line is what an editor shows."""
    lines = list(read_lines(io.BytesIO(b'{"a": 1}\n\n  \n{"a": 2}')))

    assert [(line.number, line.data) for line in lines if line.data] == [(1, b'{"a": 1}'), (4, b'{"a": 2}')]
    assert sum(line.size_bytes for line in lines) == 21


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b'{"n": 1}\n{"n": 2}\n', id="plain"),
        pytest.param(b'{"n": 1}\n{"n": 2}', id="no newline at the end"),
        pytest.param(b'{"n": 1}\r\n{"n": 2}\r\n', id="CRLF"),
        pytest.param(b'\xef\xbb\xbf{"n": 1}\n{"n": 2}\n', id="byte order mark"),
        pytest.param(b'  {"n": 1} \t\n\n   \n{"n": 2}\n\n', id="white space"),
    ],
)
def test_the_same_tasks_however_lines_are_written(data: bytes) -> None:
    """Line ends, a byte order mark, white space and empty lines make no difference."""
    assert tasks_of(data) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"[1, 2]", "no JSON object, but an array"),
        (b'"text"', "no JSON object, but a string"),
        (b"17", "no JSON object, but a number"),
        (b"true", "no JSON object, but true or false"),
        (b"null", "no JSON object, but null"),
        (b'{"a": 1', "no JSON: Expecting ',' delimiter, at character 8"),
        (b'{"a": NaN}', "no JSON: NaN is Python's, not JSON's"),
        (b'{"a": -Infinity}', "no JSON: -Infinity is Python's, not JSON's"),
        (b'{"a": "\xff"}', "no UTF-8: byte 0xff at position 7"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "no JSON that can be read: nested too deeply"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "no JSON: Exceeds the limit"),
        (b"\xff\xfe{\x00}\x00", "no UTF-8: byte 0xff at position 0"),
    ],
)
def test_what_is_no_task_says_why(line: bytes, complaint: str) -> None:
    """A line that is no JSON object gets a complaint, and the next one is read."""
    outcome, following = tasks_of(line + b'\n{"n": 1}\n')

    assert isinstance(outcome, str)
    assert outcome.startswith(complaint)
    assert following == {"n": 1}


def test_lone_surrogates_are_kept() -> None:
    """What JSON can say with escapes reaches the handler as it is."""
    assert tasks_of(b'{"a": "\\ud800"}\n') == [{"a": "\ud800"}]


def test_a_line_that_is_too_long_is_skipped() -> None:
    """A file that is no text does not end up in memory as one line."""
    data = b"x" * 1_000 + b"\n" + b'{"n": 1}\n' + b"y" * 1_000

    lines = list(read_lines(io.BytesIO(data), max_bytes=100))

    assert [(line.number, line.too_long, line.size_bytes) for line in lines] == [
        (1, True, 1_001),
        (2, False, 9),
        (3, True, 1_000),
    ]
    with pytest.raises(BadLineError, match="1,001 bytes"):
        parse_task(lines[0])


def test_a_line_of_exactly_the_greatest_length_is_read() -> None:
    """The limit counts what stands before the line's end."""
    lines = list(read_lines(io.BytesIO(b"x" * 100 + b"\n"), max_bytes=100))

    assert [line.too_long for line in lines] == [False]


def test_a_line_is_read_as_soon_as_it_has_arrived() -> None:
    """A slow producer behind a pipe does not hold back the lines it has written."""
    read, write = os.pipe()
    with open(read, "rb") as stream, open(write, "wb", buffering=0) as producer:
        lines = read_lines(stream)
        producer.write(b'{"n": 1}\n{"n": 2}\n{"n"')

        assert [next(lines).data for _ in range(2)] == [b'{"n": 1}', b'{"n": 2}']


@pytest.mark.parametrize("data", [b"", b'{"n": 1}\n', b'{"n": 1}\n{"n"'])
def test_reading_can_be_stopped(tmp_path: Path, data: bytes) -> None:
    """Whoever waits for a silent pipe is woken; half a line is not taken for a whole one."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    lines: list[bytes] = []
    read = threading.Event()
    stopped: list[BaseException] = []

    def read_all(stream: Input) -> None:
        try:
            for line in read_lines(stream):
                lines.append(line.data)
                read.set()
        except ReadingStoppedError as error:
            stopped.append(error)

    writer = os.open(path, os.O_RDWR)
    with open(writer, "wb", buffering=0) as producer, open_tasks(str(path)) as stream:
        producer.write(data)
        thread = threading.Thread(target=read_all, args=(stream,))
        thread.start()
        assert b"\n" not in data or read.wait(10)
        stream.stop()
        stream.stop()
        thread.join(10)

        assert not thread.is_alive()
        assert len(stopped) == 1
        with pytest.raises(ReadingStoppedError):
            stream.readline()
    assert lines == data.splitlines()[:1]


def test_an_input_leaves_nothing_open(tmp_path: Path) -> None:
    """Its descriptors go with it, standard input's alone stays."""
    (tmp_path / "tasks").write_bytes(b'{"n": 1}\n')
    before = len(os.listdir("/proc/self/fd"))

    with open_tasks(str(tmp_path / "tasks")) as stream:
        assert [line.data for line in read_lines(stream)] == [b'{"n": 1}']
    with open_tasks("-"):
        pass

    assert len(os.listdir("/proc/self/fd")) == before
    os.fstat(0)


def test_reading_holds_one_line() -> None:
    """An input without end is read as far as somebody asks."""
    read, write = os.pipe()
    with open(read, "rb") as stream, open(write, "wb", buffering=0) as producer:
        os.set_blocking(write, False)
        written, lines = 0, read_lines(stream)
        producer.write(b'{"n": 1}\n')
        for line in itertools.islice(lines, 50_000):
            while producer.write(b'{"n": 1}\n'):
                written += 1
            assert written - line.number < 20_000  # what pipe and buffer hold


def source(task: dict[str, object] | None, number: int = 7, taken: frozenset[str] = frozenset()) -> tuple[str, str]:
    line = Line(number, json.dumps(task).encode(), 10)
    found = source_of(line, "tasks.jsonl", task, taken.__contains__)
    assert found.where == f"tasks.jsonl:{number}"
    return found.id, found.handle_id


@pytest.mark.parametrize(
    ("own", "expected"),
    [("a", "a"), ("x" * 64, "x" * 64), (12, "12"), (0, "0"), (None, "line-7")],
)
def test_a_result_has_the_tasks_own_id(own: object, expected: str) -> None:
    """A string of 1 to 64 characters or a whole number is kept; without one the line gives the id."""
    check_id({"id": own})

    assert source({"id": own}) == (expected, expected)


def test_a_task_need_not_have_an_id() -> None:
    """The line gives one."""
    check_id({})

    assert source({}) == ("line-7", "line-7")


@pytest.mark.parametrize("own", ["x" * 65, "", True, 1.5, ["a"], {}, 10**64])
def test_an_id_that_will_not_do_is_an_error(own: object) -> None:
    """It is not replaced in silence; the complaint is found under the line's number."""
    with pytest.raises(BadIdError, match="id must be a string of 1 to 64 characters or a whole number"):
        check_id({"id": own})

    assert source({"id": own}) == ("line-7", "line-7")


def test_a_line_that_is_no_task_is_named_by_its_number() -> None:
    """There is an id in every result line."""
    assert source(None) == ("line-7", "line-7")


def test_an_id_in_flight_is_not_given_to_the_backend_again() -> None:
    """A second task of a live id would join the first one's run; the result still names the task's own id."""
    assert source({"id": "a"}, taken=frozenset({"a"})) == ("a", "line-7")


def test_an_id_that_looks_derived_is_left_to_its_line() -> None:
    """Whatever ids tasks have, those of the backend stay apart."""
    assert source({"id": "line-9"}) == ("line-9", "line-7")
    assert source({"id": "line-7"}) == ("line-7", "line-7")


def entry(number: int, size: int = 1) -> Source:
    return source_of(Line(number, b"{}", size), "t", {}, lambda _: False)


def enter_in_thread(window: Window, number: int, size: int = 1) -> tuple[threading.Thread, list[bool]]:
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(window.enter(entry(number, size))))
    thread.start()
    return thread, answers


def test_the_window_lets_in_as_many_as_fit() -> None:
    """The next one waits until one leaves."""
    window = Window(2, 1_000)
    assert window.enter(entry(1))
    assert window.enter(entry(2))

    thread, answers = enter_in_thread(window, 3)
    assert window.in_flight == 2
    window.leave(entry(1))
    thread.join(10)

    assert answers == [True]
    assert window.lines() == [2, 3]


def test_the_window_counts_bytes() -> None:
    """Large lines are few at a time, but one is always let in."""
    window = Window(100, 1_000)
    assert window.enter(entry(1, 5_000))

    thread, answers = enter_in_thread(window, 2)
    assert window.lines() == [1]
    window.leave(entry(1, 5_000))
    thread.join(10)

    assert answers == [True]


def test_a_closed_window_turns_away_who_waits() -> None:
    """After an interrupt no line comes in any more."""
    window = Window(1, 1_000)
    assert window.enter(entry(1))
    thread, answers = enter_in_thread(window, 2)

    window.close()
    thread.join(10)

    assert answers == [False]
    assert not window.enter(entry(3))
    assert window.lines() == [1]
