"""Tables as text (CSV, TSV; RFC 4180), with cells of any length.

The standard library's reader has one limit of a cell's length for the whole process, which a library must
not change.
"""

from collections.abc import Iterator

from polyjax.errors import InputError, shown


def read_table(
    lines: Iterator[str], *, delimiter: str, longest: int
) -> Iterator[tuple[int, list[str] | InputError]]:
    """The rows of a table.

    A cell that begins with a quotation mark ends at the next single one, and may contain line breaks. Within
    it, two quotation marks stand for one. Elsewhere a quotation mark is an ordinary character.

    Args:
        lines: with their line ends.
        delimiter: of cells.
        longest: characters of a cell.

    Yields:
        The number of a row's first line, from 1, and its cells (none for an empty line), or what is wrong.

    >>> list(read_table(iter(['a,"b ""c"" \\n', ' d",5" disk\\n']), delimiter=",", longest=99))
    [(1, ['a', 'b "c" \\n d', '5" disk'])]
    """
    source = _Lines(lines)
    while (line := source.next()) is not None:
        first = source.number
        try:
            if '"' in line:
                cells = _cells(line, source, delimiter, longest)
            else:
                bare = line.rstrip("\r\n")
                cells = bare.split(delimiter) if bare else []
                _check(max(map(len, cells), default=0), longest)
            yield first, cells
        except InputError as error:
            yield first, error


class _Lines:
    """Lines, counted."""

    def __init__(self, lines: Iterator[str]):
        self._lines, self.number = lines, 0

    def next(self) -> str | None:
        """The next line; None after the last."""
        line = next(self._lines, None)
        self.number += line is not None
        return line


def _cells(line: str, source: _Lines, delimiter: str, longest: int) -> list[str]:
    cells, place = [], 0
    while True:
        if line.startswith('"', place):
            cell, line, place = _quoted(line, place + 1, source, longest)
            cells.append(cell)
            rest = line[place:]
            if not rest.rstrip("\r\n"):
                return cells
            if not rest.startswith(delimiter):
                raise InputError(
                    f"cell {len(cells)}",
                    expected="a delimiter or the end of the line after the closing quotation mark",
                    got=rest[:20],
                    is_argument=False,
                )
            place += 1
        else:
            end = line.find(delimiter, place)
            cell = line[place:] if end < 0 else line[place:end]
            _check(len(cell), longest)
            if end < 0:
                return [*cells, cell.rstrip("\r\n")]
            cells.append(cell)
            place = end + 1


def _quoted(line: str, place: int, source: _Lines, longest: int) -> tuple[str, str, int]:
    """A quoted cell from after its first quotation mark, the line that it ends in, and the place after it."""
    parts: list[str] = []
    size = 0
    while True:
        end = line.find('"', place)
        doubled = end >= 0 and line.startswith('"', end + 1)
        part = line[place:] if end < 0 else line[place : end + doubled]
        parts.append(part)
        size += len(part)
        _check(size, longest)
        if end >= 0 and not doubled:
            return "".join(parts), line, end + 1
        if doubled:
            place = end + 2
            continue
        following = source.next()
        if following is None:
            raise InputError.in_row(problem="a quoted cell is not closed")
        line, place = following, 0


def _check(size: int, longest: int) -> None:
    if size > longest:
        raise InputError.in_row(expected=f"cells of at most {longest:,} characters", got=shown(f"{size:,}"))
