"""Counts the rows of a CSV file and reads its header, with bounded memory whatever is in the file.

Python's `csv` holds a whole line, and refuses long fields; a job that wrote one gigantic field would have nothing
counted. This reads the same dialect (RFC 4180 as Excel writes it) in pieces of 64 KiB and keeps no field's text, but
for the beginning of those in the header.
"""

import codecs
import enum
from pathlib import Path
from typing import BinaryIO, Final

from attrs import define, field

PIECE: Final = 64 * 1024
"""Bytes that are looked at at once."""
_ENDS: Final = "\r\n"


class _In(enum.Enum):
    START = enum.auto()
    """At the beginning of a field, where a quote opens."""
    PLAIN = enum.auto()
    """In a field, where a quote is a character like any other."""
    QUOTED = enum.auto()
    CLOSED = enum.auto()
    """Behind a quote in a quoted field: a second one is a character, anything else has left the quotes."""


@define
class Table:
    """What is known of a CSV file so far."""

    wanted: str
    """The column that is looked for."""
    found: bool = False
    """Whether the header has exactly that column."""
    columns: int = 0
    """Of the header; 0 if the file's first line is empty."""
    rows: int = 0
    """Behind the header; empty lines are none."""
    readable: bool = True
    """Whether all of it is UTF-8. If not, the rest tells what came before."""
    _state: _In = _In.START
    _in_header: bool = True
    _text: list[str] = field(factory=list)
    """The beginning of the header's field."""
    _length: int = 0
    _open: bool = False
    """Whether the row has begun."""

    def read(self, file: BinaryIO) -> None:
        """Read to the end."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        while self.readable:
            piece = file.read(PIECE)
            try:
                text = decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                text = bytes(error.object[: error.start]).decode()
                self.readable = False
            self._take(text)
            if not piece:
                break
        self._end_row()

    def _take(self, text: str) -> None:
        position = 0
        while position < len(text):
            position = self._take_header(text, position) if self._in_header else self._take_rows(text, position)

    def _take_header(self, text: str, position: int) -> int:
        """One character of the first line."""
        character = text[position]
        if self._state is _In.QUOTED:
            if character == '"':
                self._state = _In.CLOSED
            else:
                self._keep(character)
        elif character in _ENDS:
            self._end_row()
        elif character == ",":
            self._end_field()
        elif character == '"' and self._state is not _In.PLAIN:
            if self._state is _In.CLOSED:
                self._keep(character)
            self._state, self._open = _In.QUOTED, True
        else:
            self._keep(character)
            self._state = _In.PLAIN
        return position + 1

    def _keep(self, character: str) -> None:
        self._open = True
        self._length += 1
        if self._length <= len(self.wanted):
            self._text.append(character)

    def _end_field(self) -> None:
        self.found = self.found or (self._length == len(self.wanted) and "".join(self._text) == self.wanted)
        self.columns += 1
        self._open, self._state, self._length = True, _In.START, 0
        self._text.clear()

    def _end_row(self) -> None:
        if self._in_header:
            if self._open:
                self._end_field()
            self._in_header = False
        elif self._open:
            self.rows += 1
        self._open, self._state = False, _In.START

    def _take_rows(self, text: str, position: int) -> int:
        """As far as to the next quote, or as the state changes."""
        if self._state is _In.CLOSED:
            if text[position] == '"':
                self._state = _In.QUOTED
                return position + 1
            self._state = _In.START if text[position] == "," else _In.PLAIN
        quote = text.find('"', position)
        end = len(text) if quote < 0 else quote
        if self._state is not _In.QUOTED:
            self._count(text[position:end])
            if quote >= 0 and self._state is _In.START:
                self._state, self._open = _In.QUOTED, True
            elif quote >= 0:
                self._state = _In.PLAIN
        elif quote >= 0:
            self._state = _In.CLOSED
        return end if quote < 0 else end + 1

    def _count(self, text: str) -> None:
        """Count the rows that end in a text without quotes that opens and closes none."""
        if not text:
            return
        first, *others = text.replace("\r", "\n").split("\n")
        self._open = self._open or bool(first)
        if others:
            self.rows += self._open + sum(map(bool, others[:-1]))
            self._open = bool(others[-1])
        self._state = _In.START if text[-1] in ",\r\n" else _In.PLAIN


def measure(path: Path, column: str) -> Table:
    """Read a CSV file (blocking).

    :param column: the name to look for in the header.
    """
    table = Table(wanted=column)
    with path.open("rb", buffering=0) as file:
        table.read(file)
    return table
