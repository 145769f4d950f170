"""Reading a large JSON object without ever holding the whole of it.

A parsed COCO file takes five to ten times its size. Here the lists of the outermost object come one element after
another, each parsed by Python's own parser and gone when the next one comes.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

CHUNK = 2**20
"""Bytes read at a time; more where a single element is longer."""
LONGEST_TAIL = 2
"""Characters that may follow a number that is not complete: an exponent's e and sign."""
SPACE = re.compile(r"[ \t\n\r]*")
DECODER = json.JSONDecoder()


class Entry(NamedTuple):
    """A part of the outermost object.

    Attributes:
        section: its key.
        index: the place in the list; None for the value of a key that is no list, and for the list itself, as [],
            before its first element.
        value: parsed.
    """

    section: str
    index: int | None
    value: Any


def iterate_json(path: str | os.PathLike[str]) -> Iterator[Entry]:
    """The values of the outermost object of a JSON file, in order; lists element by element.

    Args:
        path: of a file in UTF-8.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no JSON object, is cut off, or has a key twice.
    """
    with open(path, "rb") as file:
        yield from _Reader(file, path).entries()


class _Reader:
    """The text of a file from the current position on, as far as it is needed."""

    def __init__(self, file: IO[bytes], path: str | os.PathLike[str]) -> None:
        self.file, self.path = file, path
        self.decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.text, self.at = "", 0
        self.before = 0  # characters that are gone
        self.ended = False

    def entries(self) -> Iterator[Entry]:
        if self.peek() != "{":
            raise self.error("there is no object, which would start with '{',")
        self.expect("{")
        seen: set[str] = set()
        for number, last in self.items("}"):
            if last:
                break
            section = self.value()
            if not isinstance(section, str) or section in seen:
                raise self.error(f"the key {section!r} is no text or comes twice")
            seen.add(section)
            self.expect(":")
            if self.peek() != "[":
                yield Entry(section, None, self.value())
                continue
            self.expect("[")
            yield Entry(section, None, [])
            for number, end in self.items("]"):
                if not end:
                    yield Entry(section, number, self.value())
        if self.peek():
            raise self.error("something follows the end")

    def items(self, end: str) -> Iterator[tuple[int, bool]]:
        """Before each element of a list or object (number, False); after the last (count, True)."""
        number = 0
        while self.peek() != end:
            if number:
                self.expect(",")
            yield number, False
            number += 1
        self.expect(end)
        yield number, True

    def peek(self) -> str:
        """The next character that is no space; '' at the end."""
        while True:
            self.at = SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # matches anything
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            raise self.error(f"{character!r} is missing" if found else "it is cut off")
        self.at += 1

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except RecursionError:
                raise self.error("it is nested too deeply") from None
            except json.JSONDecodeError as error:  # incomplete, or wrong
                if self.more():
                    continue
                cut_off = error.pos == len(self.text) or error.msg.startswith("Unterminated")
                self.at = error.pos
                raise self.error("it is cut off" if cut_off else error.msg) from None
            except ValueError:  # Python turns no more than some thousand digits into a number
                raise self.error("it has a number of too many digits") from None
            if end >= len(self.text) - LONGEST_TAIL and self.text[self.at] not in '"{[' and self.more():
                continue  # a number may go on
            self.at = end
            return value

    def more(self) -> bool:
        """Read on, twice as far as what is left; False at the end of the file."""
        if self.ended:
            return False
        content = self.file.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not content
        try:
            text = self.decode(content, self.ended)
        except UnicodeDecodeError as error:
            raise self.error(f"it is not UTF-8 ({error.reason})") from None
        if content:
            self.text, self.before, self.at = self.text[self.at :] + text, self.before + self.at, 0
        return bool(content)

    def error(self, reason: str) -> ValueError:
        return ValueError(f"{self.path} is not readable JSON: {reason} at character {self.before + self.at}")
