"""Identifies the model that an index was built with, by digests of its values.

Digests are of canonical JSON that leaves out settings at their defaults. So a new setting does not change
digests, but the default of a setting must never change: add a new setting instead.
"""

import dataclasses
import hashlib
import json
from typing import Any

from polyjax.config import Replaces, to_json
from polyjax.data.token_store import tokenizer_digest
from polyjax.inference.scorer import TextScorer

VERSION = 6
"""The index format's version. Version 5 differs only in its digests, which are of ``repr()``."""
READABLE = (5, VERSION)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Everything that a candidate's vector depends on; all entries but ``arithmetic`` are digests.

    Attributes:
        weights: digest of the parameters as they are used, so it depends on the dtype too.
        architecture: digest of the settings of encoder and head.
        tokenizer: digest of the tokenizer's files.
        lengths: digest of the text settings.
        arithmetic: the encoder's dtype.
    """

    weights: str
    architecture: str
    tokenizer: str
    lengths: str
    arithmetic: str

    def mismatch(self, other: "Fingerprint") -> str:
        """How an index with this fingerprint differs from another model, for people; "" if it does not."""
        if self.arithmetic != other.arithmetic:
            return (
                f"the index was computed in {self.arithmetic}, and the model computes in {other.arithmetic}"
            )
        parts = [
            field.name
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]
        return f"the index was made with another model (other {', '.join(parts)})" if parts else ""

    @property
    def key(self) -> str:
        """A text unique to this fingerprint. It is part of an index's identity, so it must never change."""
        names = ("weights", "architecture", "tokenizer", "lengths", "arithmetic")
        return f"Fingerprint({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


def fingerprint(scorer: TextScorer, version: int = VERSION) -> Fingerprint:
    """The fingerprint of a model.

    Args:
        scorer: the model.
        version: version of the index's format, one of ``READABLE``.
    """
    digest = {5: _digest_of_repr, VERSION: _digest}[version]
    settings = scorer.settings
    # The dtype has its own entry.
    encoder = dataclasses.replace(settings.encoder, dtype="float32")
    return Fingerprint(
        weights=scorer.model.digest(),
        architecture=digest(encoder, settings.head),
        tokenizer=tokenizer_digest(scorer.text.tokenizer),
        lengths=digest(scorer.text.config),
        arithmetic=settings.encoder.dtype,
    )


def _as_before(settings: Any) -> tuple[Any, dict[str, Any]]:
    """Settings in which newer parts are replaced by what older versions had, and the older entries."""
    entries: dict[str, Any] = {}
    if isinstance(settings, Replaces):
        settings, added = settings.before
        entries |= added
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Replaces):
            plain[field.name], added = value.before
            entries |= added
    return dataclasses.replace(settings, **plain) if plain else settings, entries


def canonical(value: Any) -> Any:
    """Plain JSON data of settings, without entries at their defaults.

    Parts that replaced entries of older versions are written as these entries, so that older indexes still
    match their models.

    >>> from polyjax.nn.heads import BiConfig
    >>> canonical(BiConfig(normalize=True))
    {'type': 'BiConfig', 'normalize': True}
    """
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return [canonical(item) for item in value] if isinstance(value, tuple | list) else to_json(value)
    value, entries = _as_before(value)
    # A part from outside the package is identified by its name and version.
    found = {"type": type(value).__name__}
    found |= {name: getattr(value, name) for name in ("name", "version") if hasattr(type(value), name)}
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING or given != default:
            found[field.name] = canonical(given)
    return found | entries


def _digest(*settings: Any) -> str:
    text = json.dumps([canonical(one) for one in settings], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _digest_of_repr(*settings: Any) -> str:
    """The digest of version 5; "" for settings that version 5 did not have."""
    texts = [_repr_of_version_5(one) for one in settings]
    if None in texts:
        return ""
    # The repr of a tuple.
    inside = ", ".join(filter(None, texts)) + ("," if len(texts) == 1 else "")
    return hashlib.sha256(f"({inside})".encode()).hexdigest()


_NAMES_OF_VERSION_5 = {
    "EncoderConfig": "vocab_size dim n_layers n_heads mlp_dim n_positions n_segments norm embedding_norm "
    "positions activation norm_eps embedding_scale output_scaling zero_padding dropout attention_dropout "
    "dtype remat remat_keeps scan",
    "BiConfig": "reduction shared_encoder normalize score_scale shared_words candidate_mlp over_padding",
    "PolyConfig": "n_codes codes codes_attention codes_heads codes_std candidate_attention candidate_heads "
    "candidate_sharpness reduction shared_encoder normalize score_scale over_padding",
    "TextConfig": "max_turns context_tokens candidate_tokens buckets padding layout",
}
"""The fields of settings in version 5, in their order."""


def _repr_of_version_5(settings: Any) -> str | None:
    """The ``repr`` of these settings in version 5; None if they use newer fields."""
    beyond = {name for name in canonical(settings) if name != "type"}
    settings, entries = _as_before(settings)
    entries = {**getattr(settings, "RETIRED", {}), **entries}
    kind = type(settings).__name__
    names = _NAMES_OF_VERSION_5.get(kind, "").split()
    if not names or beyond - set(names):
        return None
    given = {name: entries[name] if name in entries else getattr(settings, name) for name in names}
    return f"{kind}({', '.join(f'{name}={value!r}' for name, value in given.items())})"
