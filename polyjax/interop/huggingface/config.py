"""Reads a folder's config.json: the encoder's family and settings."""

import json
from pathlib import Path
from typing import Any

from polyjax.errors import InputError, shown
from polyjax.nn.encoders import FAMILIES, ConfigJson, EncoderSettings, Family

CONFIG, ADAPTER = "config.json", "adapter_config.json"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: the file is missing, is not valid JSON, or holds another type than an object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError.in_file(path, problem="the file is missing") from None
    except (OSError, ValueError) as error:
        raise InputError.in_file(path, problem=f"not readable as JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError.in_file(path, expected="a JSON object", got=found)
    return found


def read_entries(folder: Path) -> ConfigJson:
    """The entries of a folder's config.json.

    Raises:
        InputError: it is missing or is not a JSON object.
    """
    path = folder / CONFIG
    if not path.is_file():
        below = sorted(found.parent for found in folder.glob(f"*/{CONFIG}"))
        raise InputError(
            "encoder",
            expected="a folder with config.json, model.safetensors and tokenizer.json",
            got=str(folder),
            problem="no config.json there",
            fix=f"there is one in {below[0]}" if below else None,
        )
    return ConfigJson(path, read_object(path))


def family_of(entries: ConfigJson) -> Family:
    """The encoder family for the ``model_type`` in config.json.

    Raises:
        InputError: no family in ``FAMILIES`` has that model_type, or the folder has quantized weights or an
            adapter.
    """
    model_type = entries.entries.get("model_type")
    if quantized := entries.entries.get("quantization_config"):
        got = shown(f"quantization_config {quantized}")
        raise InputError.in_file(entries.path, expected="weights that are not quantized", got=got)
    adapter = entries.path.with_name(ADAPTER)
    if adapter.is_file():
        raise InputError.in_file(
            adapter, problem="an adapter, which is not read", fix="merge it into the model, then save that"
        )
    for family in FAMILIES:
        if isinstance(model_type, str) and model_type in family.architectures:
            return family
    known = ", ".join(sorted(name for family in FAMILIES for name in family.architectures))
    raise InputError.in_file(entries.path, expected=f"a model_type of {known}", got=model_type)


def family_for(settings: EncoderSettings) -> Family:
    """The family whose settings class is that of ``settings``.

    Raises:
        InputError: no family has it, so such an encoder can neither be read from a folder nor exported.
    """
    for family in FAMILIES:
        if type(settings) is family.settings:
            return family
    raise InputError(
        "encoder", expected="a family that transformers has a model for", got=type(settings).__name__
    )


def read_config(folder: Path) -> EncoderSettings:
    """The settings of a folder's encoder.

    Raises:
        InputError: config.json is missing or broken, or asks for a feature that is not implemented.
    """
    entries = read_entries(folder)
    return family_of(entries).read(entries)
