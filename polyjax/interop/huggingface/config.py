"""config.json of a folder: its family, and the settings of its encoder."""

import json
from pathlib import Path
from typing import Any

from polyjax.errors import InputError
from polyjax.nn.encoders import FAMILIES, ConfigJson, EncoderSettings, Family

CONFIG = "config.json"


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a file.

    Raises:
        InputError: the file is missing, is not JSON, or holds something else.
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
        InputError: it is missing or is not JSON.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(
            "encoder",
            expected="a folder with config.json, model.safetensors and tokenizer.json",
            got=str(folder),
            problem="no config.json there",
        )
    return ConfigJson(path, read_object(path))


def family_of(entries: ConfigJson) -> Family:
    """The family that config.json names.

    Raises:
        InputError: it names none of ``FAMILIES``.
    """
    model_type = entries.entries.get("model_type")
    for family in FAMILIES:
        if model_type in family.architectures:
            return family
    known = ", ".join(sorted(name for family in FAMILIES for name in family.architectures))
    raise InputError.in_file(entries.path, expected=f"a model_type of {known}", got=model_type)


def family_for(settings: EncoderSettings) -> Family:
    """The family of an encoder's settings.

    Raises:
        InputError: folders of such encoders have no form here.
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
        InputError: config.json is missing, broken, or asks for what is not implemented.
    """
    entries = read_entries(folder)
    return family_of(entries).read(entries)
