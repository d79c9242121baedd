"""ParlAI's dictionary as a tokenizer: word split, subword-nmt BPE, ids by line.

Text -> ids: lower-case, newline -> ``__newln__``, words and punctuation marks (each mark is a word), BPE
on each word, and the dictionary's id of each piece, the unknown id where it has none. Special tokens
typed in a text are found in the dictionary like any word, as ParlAI finds them.

BPE is written out here, though the library ``tokenizers`` has one. That one needs a vocabulary with every
symbol of every merge, and makes characters outside it unknown before it merges. Codes files have merges
alone, and what is unknown is decided afterwards, a piece at a time, by the dictionary. Nor does it know codes
of version 0.1, whose word's end is a symbol of its own, or that a word of one character has no end.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from polyjax.errors import InputError
from polyjax.runtime.files import write_bytes

DICTIONARY_FILE, CODES_FILE, SETTINGS_FILE = "parlai.dict", "parlai.dict.codecs", "parlai.json"
NEWLINE = "__newln__"
KNOWN_WORDS, LONGEST_KNOWN = 1 << 15, 32
"""Words whose pieces are kept, and characters of the longest: two kilobytes each at most."""
_WORDS = re.compile(r"\w+|[^\w\s]")
_ESCAPES = (("\\n", "\n"), ("\\t", "\t"), ("\\r", "\r"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DictionarySettings:
    """How a dictionary was used, from ParlAI's ``model.opt``.

    Attributes:
        lower: lower-case texts.
        bpe: split words by the codes; otherwise words are looked up whole.
        null: padding token.
        start: first token of a sequence.
        end: last token of a sequence.
        unknown: stands for pieces that the dictionary lacks.
        delimiter: text between the turns of a context.
        pad_to_eight: the table was filled up to a multiple of 8 rows (half-precision models).
    """

    lower: bool = False
    bpe: bool = True
    null: str = "__null__"
    start: str = "__start__"
    end: str = "__end__"
    unknown: str = "__unk__"
    delimiter: str = "\n"
    pad_to_eight: bool = False


class SubwordCodes:
    """Byte-pair codes of subword-nmt: word -> pieces, all but the last marked with ``@@``.

    Args:
        path: the codes file, one merge a line, most important first.

    Raises:
        InputError: the file is missing, or a line is not a pair.
    """

    def __init__(self, path: Path):
        lines = _read_lines(path, what="BPE codes (model.dict.codecs)")
        # Version 0.1 holds the word's end apart from its last letter.
        if lines and lines[0].startswith("#version:"):
            self._glued_end = not lines[0].split(":", 1)[1].strip().startswith("0.1")
            lines, first = lines[1:], 2
        else:
            self._glued_end, first = False, 1
        while lines and not lines[-1]:
            lines.pop()
        self._rank: dict[tuple[str, str], int] = {}
        for i, line in enumerate(lines):
            pair = line.strip("\r\n ").split(" ")
            if len(pair) != 2:
                raise InputError.in_file(path, first + i, expected="two symbols and a space", got=line)
            self._rank.setdefault((pair[0], pair[1]), i)
        self._known = lru_cache(maxsize=KNOWN_WORDS)(self._split)

    def split(self, word: str) -> tuple[str, ...]:
        """The pieces of a word; those of many short ones are kept."""
        return self._known(word) if len(word) <= LONGEST_KNOWN else self._split(word)

    def _split(self, word: str) -> tuple[str, ...]:
        """The pieces of a word.

        The pair of lowest rank is merged everywhere, until no known pair is left. A word of one character
        stays whole.
        """
        if len(word) == 1:
            return (word,)
        symbols = [*word[:-1], word[-1] + "</w>"] if self._glued_end else [*word, "</w>"]
        while len(symbols) > 1:
            pairs = set(zip(symbols, symbols[1:], strict=False))
            best = min(pairs, key=lambda pair: self._rank.get(pair, len(self._rank)))
            if best not in self._rank:
                break
            merged, i = [], 0
            while i < len(symbols):
                if tuple(symbols[i : i + 2]) == best:
                    merged.append(symbols[i] + symbols[i + 1])
                    i += 2
                else:
                    merged.append(symbols[i])
                    i += 1
            symbols = merged
        if symbols[-1] == "</w>":
            symbols.pop()
        else:
            symbols[-1] = symbols[-1].removesuffix("</w>")
        return (*(f"{symbol}@@" for symbol in symbols[:-1]), symbols[-1])


class DictionaryTokenizer:
    """A ParlAI dictionary with its BPE codes.

    Args:
        dictionary: ``model.dict``, one ``token<TAB>count`` a line.
        codes: ``model.dict.codecs``; None where words are not split.
        settings: how the dictionary was used.

    Raises:
        InputError: a file is missing or broken.
    """

    def __init__(self, dictionary: Path, codes: Path | None, settings: DictionarySettings):
        if settings.bpe and codes is None:
            raise InputError.in_file(
                dictionary, problem="the dictionary splits words by BPE, but no codes file is given"
            )
        self.settings = settings
        self._files = (dictionary, codes if settings.bpe else None)
        self._codes = SubwordCodes(codes) if settings.bpe and codes is not None else None
        self._ids = _read_dictionary(dictionary, settings)
        self.pad_id = self._ids[settings.null]
        self.start_id = self._ids[settings.start]
        self.end_id = self._ids[settings.end]
        self.unknown_id = self.mask_id = self._ids[settings.unknown]
        self.separator_ids = tuple(self._encode(settings.delimiter))

    @property
    def vocab_size(self) -> int:
        """Rows that a token table needs."""
        return len(self._ids)

    def token(self, id_: int) -> str:
        """A token as it is written in the dictionary."""
        return next((token for token, known in self._ids.items() if known == id_), "")

    def tokens(self, text: str) -> list[str]:
        """The pieces of a text."""
        text = text.lower() if self.settings.lower else text
        words = _WORDS.findall(text.replace("\n", f" {NEWLINE} "))
        if self._codes is None:
            return words
        return [piece for word in words for piece in self._codes.split(word)]

    def _encode(self, text: str) -> list[int]:
        return [self._ids.get(piece, self.unknown_id) for piece in self.tokens(text)]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens except those that the text spells out."""
        return [self._encode(text) for text in texts]

    def files(self) -> dict[str, bytes]:
        """What ``save`` writes."""
        named = zip((DICTIONARY_FILE, CODES_FILE), self._files, strict=True)
        settings = json.dumps(dataclasses.asdict(self.settings), indent=2) + "\n"
        copied = {name: source.read_bytes() for name, source in named if source is not None}
        return copied | {SETTINGS_FILE: settings.encode("utf-8")}

    def save(self, folder: Path) -> None:
        """Write the dictionary, its codes and its settings into the folder."""
        for name, content in self.files().items():
            write_bytes(folder / name, content)

    @classmethod
    def load(cls, folder: Path) -> "DictionaryTokenizer":
        """What ``save`` wrote.

        Raises:
            InputError: a file is missing or broken.
        """
        path = folder / SETTINGS_FILE
        try:
            settings = DictionarySettings(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            problem = f"cannot be read as a dictionary's settings: {error}"
            raise InputError.in_file(path, problem=problem) from None
        return cls(folder / DICTIONARY_FILE, folder / CODES_FILE if settings.bpe else None, settings)


def _read_lines(path: Path, *, what: str) -> list[str]:
    """Lines as Python's text files give them; not ``str.splitlines``, which also cuts at odd separators."""
    try:
        with path.open(encoding="utf-8", errors="ignore") as file:
            return [line.removesuffix("\n") for line in file]
    except FileNotFoundError:
        raise InputError.in_file(path, problem="the file is missing", expected=f"the {what}") from None
    except OSError as error:
        raise InputError.in_file(path, problem=f"cannot be read: {error.strerror or error}") from None


def _read_dictionary(path: Path, settings: DictionarySettings) -> Mapping[str, int]:
    """Ids: the special tokens first, then each token of the file that is not one of them."""
    special = (settings.null, settings.start, settings.end, settings.unknown)
    ids: dict[str, int] = {}
    for token in special:
        ids.setdefault(token, len(ids))
    lower = {token.upper(): token for token in ("__null__", "__start__", "__end__", "__unk__")}
    for i, line in enumerate(_read_lines(path, what="dictionary (model.dict)"), start=1):
        token, tab, count = line.partition("\t")
        if not tab or not re.fullmatch(r"-?\d+", count.strip()):
            raise InputError.in_file(path, i, expected="a token, a tab and a count", got=line[:80])
        for escape, character in _ESCAPES:
            token = token.replace(escape, character)
        if settings.null.islower():
            token = lower.get(token, token)
        ids.setdefault(token, len(ids))
    if settings.pad_to_eight:
        for i in range(-len(ids) % 8):
            ids[f"__FP16_PAD_{i}__"] = len(ids)
    return ids
