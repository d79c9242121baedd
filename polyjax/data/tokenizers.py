"""Text -> token ids: what the pipeline asks of a tokenizer, and SentencePiece trained here."""

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import sentencepiece

from polyjax.data.dictionary import DICTIONARY_FILE, DictionaryTokenizer
from polyjax.data.huggingface_tokenizer import TOKENIZER_FILE, HuggingFaceTokenizer
from polyjax.errors import InputError, first_line, shown
from polyjax.runtime.files import copy_file, temporary_folder, write_bytes

SENTENCEPIECE_FILE = "sentencepiece.model"
MAX_BYTES = 1 << 20
"""Characters of a turn that are used to train a vocabulary."""


@runtime_checkable
class Tokenizer(Protocol):
    """What the pipeline needs of a tokenizer; see ``PairTemplate`` for optional members."""

    @property
    def vocab_size(self) -> int:
        """Rows that a token table needs."""
        ...

    @property
    def pad_id(self) -> int:
        """The padding token."""
        ...

    @property
    def start_id(self) -> int:
        """First token of every sequence."""
        ...

    @property
    def end_id(self) -> int:
        """Last token of every sequence, and between context and candidate of a pair."""
        ...

    @property
    def separator_ids(self) -> tuple[int, ...]:
        """Between the turns of a context."""
        ...

    @property
    def mask_id(self) -> int:
        """Stands for a masked token; the unknown token if the vocabulary has no mask token."""
        ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens."""
        ...

    def save(self, folder: Path) -> None:
        """Write what ``load_tokenizer`` needs into the folder."""
        ...


@runtime_checkable
class PairTemplate(Protocol):
    """A tokenizer with pairs other than: first text, end token, second text in segment 1."""

    @property
    def between_ids(self) -> tuple[int, ...]:
        """Tokens between the first text's end and the second text."""
        ...

    @property
    def pair_segments(self) -> bool:
        """Whether the second text is in segment 1."""
        ...


@runtime_checkable
class InFiles(Protocol):
    """A tokenizer that returns the contents of its files."""

    def files(self) -> dict[str, bytes]:
        """What ``save`` writes: contents by file name."""
        ...


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """What a tokenizer's ``save`` writes: contents by file name."""
    if isinstance(tokenizer, InFiles):
        return tokenizer.files()
    with temporary_folder() as folder:
        tokenizer.save(folder)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


class SentencePieceTokenizer:
    """A SentencePiece model with polyjax's special tokens (see ``train_sentencepiece``).

    Args:
        path: the .model file.

    Raises:
        InputError: the file is missing, unreadable, or lacks the special tokens.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise InputError.in_file(path, problem="the file is missing: expected a SentencePiece model")
        try:
            # Not by its name, which need not be valid Unicode.
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
        except (RuntimeError, OSError) as error:
            problem = f"not a readable SentencePiece model: {first_line(error)}"
            raise InputError.in_file(path, problem=problem) from None
        self._path = path
        self.pad_id = self._processor.pad_id()
        self.start_id = self._processor.bos_id()
        self.end_id = self._processor.eos_id()
        separator = self._processor.piece_to_id("<sep>")
        self.separator_ids = (separator,)
        self.mask_id = self._processor.piece_to_id("<mask>")
        if min(self.pad_id, self.start_id, self.end_id) < 0 or separator == self._processor.unk_id():
            raise InputError.in_file(
                path,
                expected="padding, start, end and <sep> pieces",
                got=shown("a model without"),
                fix="train it with polyjax",
            )

    @property
    def vocab_size(self) -> int:
        """Rows that a token table needs."""
        return self._processor.get_piece_size()

    def token(self, id_: int) -> str:
        """A token as it is written in the vocabulary."""
        return self._processor.id_to_piece(id_)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens."""
        return self._processor.encode(list(texts))

    def files(self) -> dict[str, bytes]:
        """What ``save`` writes."""
        return {SENTENCEPIECE_FILE: self._path.read_bytes()}

    def save(self, folder: Path) -> None:
        """Write sentencepiece.model into the folder."""
        copy_file(self._path, folder / SENTENCEPIECE_FILE)


def train_sentencepiece(
    texts: Iterable[str],
    path: Path,
    *,
    vocab_size: int = 8000,
    kind: Literal["unigram", "bpe"] = "unigram",
    seed: int = 0,
    argument: str = "tokenizer.vocab_size",
    shrink: bool = False,
) -> SentencePieceTokenizer:
    """Train a SentencePiece vocabulary with byte fallback: no text maps to an unknown token.

    Args:
        texts: the corpus, one sentence or turn each.
        path: where the .model file goes; it is written aside and renamed.
        vocab_size: pieces, special tokens and 256 bytes included.
        kind: ``unigram`` or ``bpe``.
        seed: of the trainer's sampling.
        argument: the caller's name of ``vocab_size``, for the error if it is too large.
        shrink: reduce a vocabulary that is too large for the corpus to what the corpus allows; ``texts``
            must then be a list.

    Raises:
        InputError: the corpus is too small for the vocabulary.
    """
    sentencepiece.set_random_generator_seed(seed)
    sentencepiece.set_min_log_level(2)
    model = io.BytesIO()  # a file's name would become part of the model
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=kind,
            byte_fallback=True,
            normalization_rule_name="nmt_nfkc_cf",
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            # Control symbols are never produced from text; <mask> is for pre-training.
            control_symbols=["<sep>", "<mask>"],
            max_sentence_length=MAX_BYTES,  # longer ones would be dropped silently
            num_threads=1,  # with more threads the summation order, and so the vocabulary, may differ
        )
    except RuntimeError as error:
        if "sentences_.empty()" in str(error):
            raise InputError("texts", expected="text to train a vocabulary on", got=shown("none")) from None
        most = re.search(r"<= (\d+)", str(error))
        if shrink and most is not None and int(most[1]) < vocab_size:
            return train_sentencepiece(
                texts, path, vocab_size=int(most[1]), kind=kind, seed=seed, argument=argument
            )
        problem, fix = f"does not fit the corpus ({' '.join(str(error).split())})", None
        if most is not None:
            problem = f"is too large for the corpus, which has {most[1]} pieces"
            fix = f"use at most {most[1]} as `{argument}`"
        elif least := re.search(r"\d+ vs (\d+)", str(error)):
            problem, fix = "is smaller than the number of letters", f"use at least {least[1]} as `{argument}`"
        raise InputError(argument, problem=problem, got=vocab_size, fix=fix) from None
    write_bytes(path, model.getvalue())
    return SentencePieceTokenizer(path)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a run directory or model folder; its kind follows from the file."""
    if (folder / TOKENIZER_FILE).is_file():
        return HuggingFaceTokenizer(folder / TOKENIZER_FILE)
    if (folder / SENTENCEPIECE_FILE).is_file():
        return SentencePieceTokenizer(folder / SENTENCEPIECE_FILE)
    if (folder / DICTIONARY_FILE).is_file():
        return DictionaryTokenizer.load(folder)
    raise InputError.in_file(
        folder,
        expected=f"a tokenizer: {TOKENIZER_FILE}, {SENTENCEPIECE_FILE} or {DICTIONARY_FILE}",
        got=shown("none of them"),
    )
