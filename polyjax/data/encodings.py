"""Which encoding a text file has, by its first bytes."""

import codecs
from pathlib import Path

from polyjax.errors import InputError, shown

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_KINDS = (
    (b"PK\x03\x04", "a zip archive (a spreadsheet, perhaps)"),
    (b"\x1f\x8b", "a gzip file"),
    (b"PAR1", "a parquet file"),
    (b"\x28\xb5\x2f\xfd", "a zstandard file"),
)
_LOOKED_AT = 1000


def by_mark(head: bytes) -> str | None:
    r"""The encoding that a byte order mark names; None without one.

    >>> by_mark(b"\xff\xfeh\0"), by_mark(b"hi")
    ('utf-16', None)
    """
    return next((name for mark, name in _MARKS if head.startswith(mark)), None)


def encoding_of(path: Path) -> str:
    """The encoding of a text file: UTF-8, or what its byte order mark says.

    Raises:
        InputError: the file cannot be read, or does not begin like a text.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_LOOKED_AT)
    except IsADirectoryError:
        raise InputError.in_file(path, expected="a file", got=shown("a folder")) from None
    except OSError as error:
        raise InputError.in_file(path, problem=f"cannot be read: {error.strerror or error}") from None
    if marked := by_mark(head):
        return marked
    for mark, kind in _OTHER_KINDS:
        if head.startswith(mark):
            raise InputError.in_file(path, expected="UTF-8 text", got=shown(kind), fix="unpack or convert it")
    if b"\0" in head:
        # Of UTF-16 without a mark every other byte is 0 where letters are Latin.
        wide = max(head[::2].count(0), head[1::2].count(0)) > len(head) / 4
        kind = "UTF-16 without a byte order mark" if wide else "binary data"
        raise InputError.in_file(path, expected="UTF-8 text", got=shown(kind), fix="save it as UTF-8")
    return "utf-8-sig"


def not_valid(path: Path, encoding: str, error: UnicodeDecodeError) -> InputError:
    """The error for bytes that an encoding does not allow."""
    name = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
    return InputError.in_file(path, problem=f"not valid {name}: {error.reason} at byte {error.start}")
