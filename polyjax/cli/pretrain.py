"""``polyjax pretrain``: pre-train an encoder. ``python experiments/pretrain.py`` is the same."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Literal

from polyjax.cli.flags import parse_flags, user_errors
from polyjax.cli.training_flags import chosen, encoder_flag
from polyjax.interop.hub import pinned
from polyjax.mesh.processes import connect, leaving_at_once, losses_named
from polyjax.recipes.pretrain import run
from polyjax.recipes.pretraining_settings import PRESETS, PretrainConfig
from polyjax.runtime.compilation import enable_compilation_cache
from polyjax.runtime.memory import restart_with_huge_pages


@dataclasses.dataclass(frozen=True)
class PresetChoice:
    """The flag that selects the defaults of all others."""

    preset: Literal["small", "paper"] = "small"


def parse(arguments: Sequence[str], *, prog: str = "polyjax pretrain") -> PretrainConfig:
    """Parse the arguments of ``polyjax pretrain``; InputError if they are invalid."""
    arguments = encoder_flag(arguments)
    default = PRESETS[chosen(PresetChoice, arguments, prog).preset]()
    found = parse_flags(PretrainConfig, arguments, prog=prog, default=default)
    encoder = dataclasses.replace(found.encoder, name=pinned(found.encoder.name))  # record the commit
    return dataclasses.replace(found, encoder=encoder)


def main(arguments: Sequence[str] | None = None, *, prog: str = "polyjax pretrain") -> None:
    """Parse and pre-train; invalid input is one line and exit status 2."""
    restart_with_huge_pages()
    with leaving_at_once(), user_errors(), losses_named():
        config = parse(sys.argv[1:] if arguments is None else arguments, prog=prog)
        enable_compilation_cache()
        connect()
        run(config)
