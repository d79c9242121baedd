"""Tokenizers in Hugging Face's files: WordPiece, byte-level BPE, Unigram, of tokenizer.json or vocab.txt.

Special tokens are those that the file's own template puts around texts, and those that tokenizer_config.json
names; their spelling does not matter.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import normalizers, pre_tokenizers, processors

from polyjax.data.tokenizer_settings import apply_settings, check_marks, content_of
from polyjax.errors import InputError, first_line, shown
from polyjax.runtime.files import write_bytes

TOKENIZER_FILE, TOKENIZER_CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
VOCABULARY_FILE, SPECIAL_TOKENS_FILE = "vocab.txt", "special_tokens_map.json"
Markers = Literal["special", "text"]
"""How a special token that a text spells out, such as ``[SEP]``, is read."""

_KEPT = ("tokenizer_class", "model_input_names", "split_special_tokens", "clean_up_tokenization_spaces")
_NAMED = ("pad_token", "mask_token", "unk_token", "cls_token", "sep_token", "bos_token", "eos_token")
_BERT_TOKENS = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "mask", "unk", "cls", "sep")}
_WITHOUT_SEGMENTS = ("Roberta", "XLMRoberta", "Camembert", "MPNet", "DistilBert", "Albert", "Bart")
"""Prefixes of tokenizer classes of transformers that do not number segments, whatever their template says."""

_BARE = "TokenizersBackend"
"""The class of transformers 5 that numbers segments only where ``model_input_names`` asks for it."""


class HuggingFaceTokenizer:
    """A tokenizer.json, with what tokenizer_config.json beside it says.

    Args:
        path: the tokenizer.json file. Its own truncation and padding are ignored: the pipeline does both.
        markers: how a special token that a text spells out is read. If None, as the special token if
            tokenizer_config.json is used, as transformers does, and text otherwise.
        pad_id: the padding token, if tokenizer_config.json does not name it.
        config: whether a tokenizer_config.json is used; without it special tokens are BERT's.

    Raises:
        InputError: a file is missing or unreadable, or the template is of a kind that is not supported.

    Attributes:
        pad_id: the padding token.
        start_id: the first token of every sequence.
        end_id: the last one.
        between_ids: tokens of a pair between the first text's end and the second text.
        pair_segments: whether the second text of a pair is in segment 1.
        separator_ids: between the turns of a context.
        mask_id: stands for a masked token.
        max_length: tokens of the longest sequence that tokenizer_config.json allows; None for no limit.
    """

    def __init__(
        self, path: Path, *, markers: Markers | None = None, pad_id: int | None = None, config: bool = True
    ):
        if not path.is_file():
            raise InputError.in_file(path, problem="the file is missing: expected a tokenizer")
        try:
            tokenizer = tokenizers.Tokenizer.from_buffer(path.read_bytes())
        except Exception as error:  # the library raises bare Exception for a file it cannot parse
            problem = f"not a readable tokenizer.json: {first_line(error)}"
            raise InputError.in_file(path, problem=problem) from None
        there = config and path.with_name(TOKENIZER_CONFIG_FILE).is_file()
        settings = read_settings(path.parent) if there else None if markers is None else {}
        if settings:
            apply_settings(tokenizer, settings, path.with_name(TOKENIZER_CONFIG_FILE))
        self._init(tokenizer, path, settings, markers, pad_id)

    @classmethod
    def from_vocabulary(
        cls, path: Path, *, markers: Markers | None = None, pad_id: int | None = None
    ) -> "HuggingFaceTokenizer":
        """A BERT tokenizer of a vocab.txt, a piece a line, with what tokenizer_config.json beside it says.

        Raises:
            InputError: a file is missing or unreadable, or the tokenizer is of another kind.
        """
        settings = read_settings(path.parent)
        new = cls.__new__(cls)
        new._init(_wordpiece(path, settings), path, settings, markers, pad_id)
        return new

    def _init(
        self,
        tokenizer: tokenizers.Tokenizer,
        path: Path,
        settings: Mapping[str, Any] | None,
        markers: Markers | None,
        pad_id: int | None,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._path, self._tokenizer, self._settings = path, tokenizer, settings
        named = settings or _BERT_TOKENS
        if markers is None:
            as_text = settings is None or settings.get("split_special_tokens", False)
        else:
            as_text = markers == "text"
        self.markers: Markers = "text" if as_text else "special"
        self._read_template()
        about = path.with_name(TOKENIZER_CONFIG_FILE)
        check_marks(tokenizer, settings or {}, about, self.start_id, self.end_id)
        # After the template was read, which special tokens in texts would not be.
        tokenizer.encode_special_tokens = as_text
        self.separator_ids = (self.end_id, *self.between_ids)
        found = {name: self._id(name, named.get(name)) for name in ("pad_token", "mask_token", "unk_token")}
        pad = found["pad_token"] if found["pad_token"] is not None else pad_id
        if pad is None:
            raise InputError.in_file(
                path, problem=f"no padding token: expected pad_token in {TOKENIZER_CONFIG_FILE}"
            )
        self.pad_id: int = pad
        hidden = (found["mask_token"], found["unk_token"])
        self.mask_id: int = next((id_ for id_ in hidden if id_ is not None), pad)
        limit = (settings or {}).get("model_max_length")
        # transformers writes 1e30 for no limit
        self.max_length = int(limit) if isinstance(limit, int | float) and limit < 1e9 else None
        if (settings or {}).get("truncation_side", "right") != "right":
            raise InputError.in_file(
                path.with_name(TOKENIZER_CONFIG_FILE),
                expected="'right' for 'truncation_side'",
                got=(settings or {})["truncation_side"],
            )

    def _id(self, name: str, token: Any) -> int | None:
        content = content_of(token, name, self._path.with_name(TOKENIZER_CONFIG_FILE))
        return None if content is None else self._tokenizer.token_to_id(content)

    def _read_template(self) -> None:
        """The special tokens around one text, and around and between two."""
        single, pair = self._tokenizer.encode("a"), self._tokenizer.encode("a", "a")
        around, parts = _runs(single), _runs(pair)
        cls_id, sep_id = (self._tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
        if cls_id is not None and sep_id is not None and not any(special for special, _ in around):
            # Some WordPiece files, those of earlier runs too, leave the template out: it is BERT's.
            self.start_id, self.end_id, self.between_ids = cls_id, sep_id, ()
            self.pair_segments = True
            return
        kinds = [special for special, _ in parts]
        if [special for special, _ in around] != [True, False, True] or kinds != [True, False] * 2 + [True]:
            raise self._unsupported(single.tokens, pair.tokens)
        (_, start), _, (_, end) = around
        (_, first), _, (_, middle), _, (_, last) = parts
        if len(start) != 1 or len(end) != 1 or (first, last) != (start, end) or middle[0] != end[0]:
            raise self._unsupported(single.tokens, pair.tokens)
        self.start_id, self.end_id, self.between_ids = start[0], end[0], tuple(middle[1:])
        n_first = len(pair.ids) - len(parts[3][1]) - 1
        expected = [0] * n_first + [1] * (len(pair.ids) - n_first)
        settings = self._settings or {}
        inputs = settings.get("model_input_names")
        kind = str(settings.get("tokenizer_class", ""))
        made = "token_type_ids" in inputs if isinstance(inputs, list) else kind != _BARE
        self.pair_segments = pair.type_ids == expected and made and not kind.startswith(_WITHOUT_SEGMENTS)

    def _unsupported(self, single: list[str], pair: list[str]) -> InputError:
        return InputError.in_file(
            self._path,
            expected="a template with one token before and after a text, and the latter between two",
            got=shown(f"{' '.join(single)} and {' '.join(pair)} of the text 'a'"),
        )

    @property
    def vocab_size(self) -> int:
        """Rows that a token table needs."""
        return self._n_rows

    @functools.cached_property
    def _n_rows(self) -> int:
        """Counted once: each look at the vocabulary copies it."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def token(self, id_: int) -> str:
        """A token as it is written in the vocabulary."""
        return self._tokenizer.id_to_token(id_) or ""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without the template's tokens."""
        return [e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def lower_cased(self) -> "HuggingFaceTokenizer":
        """The same tokenizer for texts in lower case; special tokens that a text spells out stay special."""
        tokenizer = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        own = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])  # pyright: ignore[reportAttributeAccessIssue]
        new = type(self).__new__(type(self))
        new._init(tokenizer, self._path, self._settings, self.markers, self.pad_id)
        return new

    def files(self) -> dict[str, bytes]:
        """What ``save`` writes."""
        found: dict[str, bytes] = {}
        if self._settings is not None:  # first, as without it special tokens in texts would be text
            text = json.dumps(self.settings(), indent=2, ensure_ascii=False) + "\n"
            found[TOKENIZER_CONFIG_FILE] = text.encode("utf-8")
        return found | {TOKENIZER_FILE: self._tokenizer.to_str(pretty=True).encode("utf-8")}

    def settings(self) -> dict[str, Any]:
        """What tokenizer_config.json needs to say, for this library and for transformers."""
        named = {} if self._settings is None else self._settings
        kept = {name: named[name] for name in (*_KEPT, *_NAMED) if named.get(name) is not None}
        kept["pad_token"] = self._tokenizer.id_to_token(self.pad_id)
        kept["split_special_tokens"] = self.markers == "text"
        return {"tokenizer_class": "PreTrainedTokenizerFast", **kept}

    def save(self, folder: Path) -> None:
        """Write the files into the folder."""
        for name, content in self.files().items():
            write_bytes(folder / name, content)


def _runs(encoding: tokenizers.Encoding) -> list[tuple[bool, list[int]]]:
    """Ids that follow each other and are all of the template, or all of a text."""
    found: list[tuple[bool, list[int]]] = []
    places = zip(encoding.ids, encoding.special_tokens_mask, encoding.sequence_ids, strict=True)
    for id_, special, sequence in places:
        of_template = bool(special) and sequence is None
        if not found or found[-1][0] != of_template:
            found.append((of_template, []))
        found[-1][1].append(id_)
    return found


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json of a folder, with the tokens that special_tokens_map.json names besides.

    Raises:
        InputError: a file is not a JSON object.
    """
    found: dict[str, Any] = {}
    for path in (folder / SPECIAL_TOKENS_FILE, folder / TOKENIZER_CONFIG_FILE):
        if not path.is_file():
            continue
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError.in_file(path, problem=f"not readable as JSON: {error}") from None
        if not isinstance(entries, dict):
            raise InputError.in_file(path, expected="a JSON object", got=entries)
        found |= entries
    return found


def _wordpiece(path: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer that transformers makes of a vocab.txt."""
    kind = str(settings.get("tokenizer_class", "BertTokenizer"))
    roberta_like = kind.startswith("MPNet")
    if not roberta_like and not kind.startswith(("Bert", "DistilBert", "Electra")):
        raise InputError.in_file(
            path, problem=f"a {kind} cannot be made of it alone; expected {TOKENIZER_FILE} beside it"
        )
    try:
        pieces = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise InputError.in_file(path, problem=f"not readable as UTF-8: {error}") from None
    vocabulary = {piece.rstrip("\r"): i for i, piece in enumerate(pieces) if piece or i < len(pieces) - 1}
    names = {name: settings.get(name, default) for name, default in _BERT_TOKENS.items()}
    about = path.with_name(TOKENIZER_CONFIG_FILE)
    names = {name: content_of(t, name, about) or _BERT_TOKENS[name] for name, t in names.items()}
    missing = sorted({token for token in names.values() if token not in vocabulary} - {names["mask_token"]})
    if missing:
        raise InputError.in_file(path, problem=f"the pieces {', '.join(missing)} are missing")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token=names["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer()  # pyright: ignore[reportAttributeAccessIssue]
    known = {"tokenizer_class": "MPNetTokenizer" if roberta_like else "BertTokenizer"}
    apply_settings(tokenizer, {**settings, **known}, about)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens([token for token in names.values() if token in vocabulary])
    start, end = ((names[name], vocabulary[names[name]]) for name in ("cls_token", "sep_token"))
    if roberta_like:
        processor = processors.RobertaProcessing(end, start)
    else:
        processor = processors.BertProcessing(end, start)
    tokenizer.post_processor = processor  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def read_tokenizer(folder: Path, *, pad_id: int | None = None) -> HuggingFaceTokenizer:
    """The tokenizer of a folder as transformers saves it; special tokens in texts are special, as there.

    Args:
        folder: has tokenizer.json, or vocab.txt.
        pad_id: the padding token, if no file names it.

    Raises:
        InputError: the folder has neither, or a file is broken.
    """
    as_text = read_settings(folder).get("split_special_tokens", False)
    markers: Markers = "text" if as_text else "special"
    if (folder / TOKENIZER_FILE).is_file():
        return HuggingFaceTokenizer(folder / TOKENIZER_FILE, markers=markers, pad_id=pad_id)
    if (folder / VOCABULARY_FILE).is_file():
        return HuggingFaceTokenizer.from_vocabulary(folder / VOCABULARY_FILE, markers=markers, pad_id=pad_id)
    raise InputError.in_file(
        folder / TOKENIZER_FILE, problem=f"the file is missing: expected a tokenizer, or {VOCABULARY_FILE}"
    )
