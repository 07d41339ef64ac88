"""What do the docstrings and comments of a Python file say?

A text is a docstring or a block of comment lines; a statement is one sentence of it, with its first line.
"""

from __future__ import annotations

import ast
import io
import re
import threading
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

MIN_WORDS: Final = 4  # below, it is a heading, a name or a piece of code that was commented out

_BULLET: Final = re.compile(r"\s*([-*+]|\d+[.)])\s")
_PROMPTS: Final = (">>>", "...")
_ENDS: Final = (".", "!", "?", ":", ";")
_PUNCTUATION: Final = ".,:;?()[]{}'\"`"  # no operators: "a != b" and "a == b" say different things
_ABBREVIATIONS: Final = frozenset({"e.g.", "i.e.", "cf.", "vs."})

# What reading and parsing raise for what is no fault of ours: null bytes, a wrong encoding, another Python's
# syntax, nesting too deep.
UNREADABLE: Final = (OSError, SyntaxError, ValueError, tokenize.TokenError, RecursionError)

# Race: before CPython 3.11.8 all threads share one count of the parser's depth, and a garbage collection that runs
# Python code in mid-parse lets another thread in; whoever ends second gets a SystemError. So one thread parses at a
# time, which costs nothing: parsing holds the interpreter's lock anyway. It can go when 3.11.8 is the oldest Python
# that we run on. https://github.com/python/cpython/issues/106905
_parsing = threading.Lock()


@dataclass(frozen=True, slots=True)
class Statement:
    """One sentence, and where it stands."""

    text: str
    path: str
    line: int

    @property
    def source(self) -> str:
        return f"{self.path}:{self.line}"


def read_statements(path: str, source: bytes) -> list[Statement]:
    """Give the statements in a file's source, docstrings first.

    Args:
        path (str): The file's name as the statements are to give it.
        source (bytes): What the file holds. As bytes, because the file itself says how it is encoded.

    Returns:
        list[Statement]: Those of at least MIN_WORDS words.

    Raises:
        UNREADABLE: The source is not Python that this interpreter understands.
    """
    texts = [*_docstrings(source), *_comments(source)]
    return [
        Statement(sentence, path, sentence_line)
        for line, text in texts
        for sentence_line, sentence in _sentences(line, text)
        if len(sentence.split()) >= MIN_WORDS
    ]


def normalise(text: str) -> str:
    """Drop what does not change a statement's meaning: case, spacing, punctuation around words."""
    words = (word.strip(_PUNCTUATION) for word in text.lower().split())
    return " ".join(word for word in words if word)


def _docstrings(source: bytes) -> Iterator[tuple[int, str]]:
    with _parsing:
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)  # cleaned, its lines could no longer be counted
            if text:
                yield node.body[0].lineno, text


def _comments(source: bytes) -> Iterator[tuple[int, str]]:
    """Comments on consecutive lines of their own are one text; one behind code stands for itself."""
    first, lines = 0, list[str]()
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        row, column = token.start
        continues = row == first + len(lines) and not token.line[:column].strip()
        if not continues:
            yield first, "\n".join(lines)
            first, lines = row, []
        lines.append(token.string.lstrip("#!: "))
    yield first, "\n".join(lines)


def _sentences(line: int, text: str) -> Iterator[tuple[int, str]]:
    """Cut at the end of a sentence, at a blank line, before a bullet; leave out what is typed at a prompt."""
    first, words = line, list[str]()
    for number, row in enumerate(text.splitlines(), line):
        if words and (not row.strip() or _BULLET.match(row)):
            yield first, " ".join(words)
            words = []
        if row.lstrip().startswith(_PROMPTS):
            continue
        for word in row.split():
            if not words:
                first = number
            words.append(word)
            if word.endswith(_ENDS) and word.lower() not in _ABBREVIATIONS:
                yield first, " ".join(words)
                words = []
    if words:
        yield first, " ".join(words)
