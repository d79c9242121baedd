"""ParlAI's parts in the JSON files of a run directory, and the upgrade of files of older versions."""

from collections.abc import Callable, Mapping
from typing import Any

from polyjax.config import CUSTOM, Foreign
from polyjax.interop.parlai.heads import OverPadding, ParlaiBiConfig
from polyjax.interop.parlai.layout import ParlaiLayout
from polyjax.interop.parlai.warmup import ParlaiWarmup

Entries = dict[str, Any]
_BI = ("reduction", "shared_encoder", "normalize", "score_scale", "candidate_mlp", "shared_words")


def _record(kind: Any, settings: Entries) -> Entries:
    return {"type": CUSTOM, "name": kind.name, "version": kind.version, "settings": settings}


def _head(data: Entries) -> Entries:
    """Upgrade a head: ``over_padding``, ``candidate_mlp`` and ``shared_words`` used to be its settings."""
    if data.get("over_padding") is True:
        default = "first" if data["type"] == "CrossConfig" else "mean"
        kind = {"kind": data.get("reduction", default)}
        data = {name: value for name, value in data.items() if name != "over_padding"}
        data["reduction"] = _record(OverPadding, kind)
    if data["type"] != "BiConfig" or not (data.get("candidate_mlp") or data.get("shared_words")):
        return data
    beyond = {name for name, value in data.items() if value and name not in (*_BI, "type")}
    if beyond:  # no ParlAI model has these, so the reader of the file refuses the old entries
        return data
    return _record(ParlaiBiConfig, {name: data[name] for name in _BI if name in data})


def _text(data: Entries) -> Entries:
    """Upgrade text settings: ``layout`` used to be one of two names."""
    return data | {"layout": _record(ParlaiLayout, {})} if data.get("layout") == "parlai" else data


def _run(data: Entries) -> Entries:
    """Upgrade the settings of a run: the warm-up steps used to be a setting of the optimiser."""
    steps = _warmup_of(data)
    if not steps:
        return data
    own = data.get("own_optimizer") or _record(ParlaiWarmup, {"steps": steps})
    return data | {"optim": _without_warmup(data), "own_optimizer": own}


def _origin(data: Entries) -> Entries:
    """Upgrade the origin of a converted model, likewise."""
    steps = _warmup_of(data)
    return data | {"optim": _without_warmup(data), "warmup": steps} if steps else data


def _warmup_of(data: Entries) -> int:
    optim = data.get("optim")
    return optim.get("parlai_warmup") or 0 if isinstance(optim, dict) else 0


def _without_warmup(data: Entries) -> Entries:
    return {name: value for name, value in data["optim"].items() if name != "parlai_warmup"}


_UPGRADES: Mapping[str, Callable[[Entries], Entries]] = {
    "BiConfig": _head,
    "PolyConfig": _head,
    "CrossConfig": _head,
    "TextConfig": _text,
    "RunConfig": _run,
    "ConvertedFrom": _origin,
}


def upgraded(data: Any) -> Any:
    """JSON data of a run directory, with ParlAI's parts in the form that this version writes.

    >>> old = {"type": "TextConfig", "max_turns": 2, "layout": "parlai"}
    >>> upgraded(old)["layout"]["name"]
    'parlai-layout'
    """
    if isinstance(data, list):
        return [upgraded(item) for item in data]
    if not isinstance(data, dict):
        return data
    kind = data.get("type")
    change = _UPGRADES.get(kind) if isinstance(kind, str) else None
    data = {name: upgraded(value) for name, value in data.items()}
    return data if change is None else change(data)


_PARTS: tuple[Any, ...] = (OverPadding, ParlaiBiConfig, ParlaiLayout, ParlaiWarmup)
PARLAI = Foreign({kind.name: kind for kind in _PARTS}, upgraded)
"""ParlAI's parts and their upgrade, for the functions that read a run directory's files."""
