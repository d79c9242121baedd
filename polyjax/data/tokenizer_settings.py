"""What tokenizer_config.json says over tokenizer.json, as transformers applies it.

Folders that transformers wrote agree with themselves. Where somebody has edited one of the two files, this
follows tokenizer_config.json, as transformers does, or refuses the folder.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from polyjax.errors import InputError, shown

BERT_LIKE = ("Bert", "DistilBert", "Electra", "MPNet")
SENTENCEPIECE_LIKE = ("XLMRoberta", "Camembert", "Albert", "DebertaV2")
_NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""Entries of tokenizer_config.json, and the fields of tokenizer.json's BertNormalizer."""
_PARTS = {
    "Albert": {"do_lower_case": ("Lowercase", True), "keep_accents": ("StripAccents", False)},
    "DebertaV2": {"do_lower_case": ("Lowercase", True), "split_by_punct": ("Punctuation", True)},
}
"""By class: entries, and the part of tokenizer.json that is there where the entry has this value."""
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def class_of(settings: Mapping[str, Any]) -> str:
    """The tokenizer's class, without the ending that older versions give to fast ones."""
    kind = str(settings.get("tokenizer_class", "")).removesuffix("Fast").removesuffix("Tokenizer")
    return kind if kind in (*BERT_LIKE, *SENTENCEPIECE_LIKE, "Roberta") else ""


def apply_settings(tokenizer: tokenizers.Tokenizer, settings: Mapping[str, Any], path: Path) -> None:
    """Change a tokenizer to what its settings say.

    Args:
        tokenizer: of tokenizer.json.
        settings: of tokenizer_config.json.
        path: of tokenizer_config.json, for errors.

    Raises:
        InputError: the two files contradict each other, or an entry is of another type.
    """
    kind = class_of(settings)
    before = {
        name: None if part is None else json.loads(part.__getstate__())
        for name, part in (("normalizer", tokenizer.normalizer), ("pre_tokenizer", tokenizer.pre_tokenizer))
    }
    after = json.loads(json.dumps(before))
    if kind in BERT_LIKE:
        _set_normalizer(after, settings, path)
    if kind == "Roberta" or kind in SENTENCEPIECE_LIKE:
        _set_prefix_space(after, settings, path, kind)
    for name, (part, value) in _PARTS.get(kind, {}).items():
        found = any(one.get("type") == part for one in _parts(after))
        if name in settings and _flag(settings, name, path) != (found == value):
            raise _contradiction(path, name, settings[name])
    if after != before:
        changed = _made_of(after)
        tokenizer.normalizer, tokenizer.pre_tokenizer = changed.normalizer, changed.pre_tokenizer
    _add_tokens(tokenizer, settings, path)


def check_marks(
    tokenizer: tokenizers.Tokenizer, settings: Mapping[str, Any], path: Path, start: int, end: int
) -> None:
    """Check the special tokens around a text against those that the settings name.

    Args:
        tokenizer: of tokenizer.json.
        settings: of tokenizer_config.json.
        path: of tokenizer_config.json, for errors.
        start: id of the token before a text.
        end: id of the token after it.

    Raises:
        InputError: they differ; transformers would put those of the settings around it.
    """
    kind = class_of(settings)
    names = ("bos_token", "eos_token") if kind in ("XLMRoberta", "Camembert") else ("cls_token", "sep_token")
    for name, id_ in zip(names, (start, end), strict=True):
        token = content_of(settings.get(name), name, path)
        if kind and token is not None and tokenizer.token_to_id(token) != id_:
            raise _contradiction(path, name, token)
    unknown = content_of(settings.get("unk_token"), "unk_token", path)
    own = getattr(tokenizer.model, "unk_token", None)
    if kind in BERT_LIKE and unknown and own and unknown != own:
        raise _contradiction(path, "unk_token", unknown)


def content_of(token: Any, name: str, path: Path) -> str | None:
    """The text of a token, which is a text or an object with one; None for none.

    Raises:
        InputError: it is something else.
    """
    content = token.get("content") if isinstance(token, dict) else token
    if content is not None and not isinstance(content, str):
        raise InputError.in_file(path, expected=f"a text for {name!r}", got=token)
    return content


def _set_normalizer(parts: Mapping[str, Any], settings: Mapping[str, Any], path: Path) -> None:
    found = [one for one in _parts(parts) if one.get("type") == "BertNormalizer"]
    for name, field in _NORMALIZER.items():
        if name not in settings:
            continue
        value = settings[name]
        if value is not None or name != "strip_accents":
            value = _flag(settings, name, path)
        if not found and value:
            lowers = any(one.get("type") == "Lowercase" for one in _parts(parts))
            if not (name == "do_lower_case" and lowers) and name != "tokenize_chinese_chars":
                raise _contradiction(path, name, value)
        for one in found:
            one[field] = value


def _set_prefix_space(parts: Mapping[str, Any], settings: Mapping[str, Any], path: Path, kind: str) -> None:
    if "add_prefix_space" not in settings:
        return
    wanted = _flag(settings, "add_prefix_space", path)
    for one in _parts(parts):
        if one.get("type") == "ByteLevel" and kind == "Roberta":
            one["add_prefix_space"] = wanted
        if one.get("type") == "Metaspace" and kind in SENTENCEPIECE_LIKE:
            without = "first" if kind == "DebertaV2" else "never"
            scheme = one.get("prepend_scheme", "always")
            if wanted and scheme == "never":
                one["prepend_scheme"] = "always"
            elif not wanted and scheme == "always":
                one["prepend_scheme"] = without


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """All objects with a type in the state of a normalizer or pre-tokenizer, nested ones too."""
    if isinstance(value, dict):
        if "type" in value:
            yield value
        for one in value.values():
            yield from _parts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _parts(one)


def _made_of(parts: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """A tokenizer of one word with this normalizer and pre-tokenizer."""
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    others = dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
    content = {"version": "1.0", "added_tokens": [], "model": model, **others, **parts}
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def _add_tokens(tokenizer: tokenizers.Tokenizer, settings: Mapping[str, Any], path: Path) -> None:
    """Add the tokens that the settings list and tokenizer.json lacks."""
    listed = settings.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict) or not all(str(id_).isdecimal() for id_ in listed):
        raise InputError.in_file(path, expected="tokens by id for 'added_tokens_decoder'", got=listed)
    there = tokenizer.get_added_tokens_decoder()
    for id_, entry in sorted((int(id_), entry) for id_, entry in listed.items()):
        content = content_of(entry, "added_tokens_decoder", path)
        if content is None:
            raise InputError.in_file(path, expected="a text for each of 'added_tokens_decoder'", got=entry)
        if id_ not in there:
            flags = entry if isinstance(entry, dict) else {}
            flags = {name: bool(flags[name]) for name in _FLAGS if name in flags}
            tokenizer.add_tokens([tokenizers.AddedToken(content, **flags)])
        if tokenizer.token_to_id(content) != id_:
            raise _contradiction(path, "added_tokens_decoder", content)
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = settings.get(name) or []
        if not isinstance(more, list | dict):
            raise InputError.in_file(path, expected=f"a list of tokens for {name!r}", got=more)
        contents = [
            content_of(one, name, path) for one in (more.values() if isinstance(more, dict) else more)
        ]
        tokenizer.add_special_tokens([one for one in contents if one and tokenizer.token_to_id(one) is None])


def _flag(settings: Mapping[str, Any], name: str, path: Path) -> bool:
    value = settings[name]
    if not isinstance(value, bool):
        raise InputError.in_file(path, expected=f"true or false for {name!r}", got=value)
    return value


def _contradiction(path: Path, name: str, value: Any) -> InputError:
    problem = f"{name!r} contradicts tokenizer.json"
    return InputError.in_file(path, problem=problem, got=shown(repr(value)), fix="correct one of the files")
