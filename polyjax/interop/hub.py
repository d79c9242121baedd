"""Loads models by name from the Hugging Face hub or its local cache, and uploads them (extra ``hub``).

A name is ``organisation/model``. ``@revision`` after it selects a branch, a tag or a commit; the default is
the newest commit. For a folder, huggingface_hub is not imported and no network is used.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from polyjax.data.known import KNOWN
from polyjax.errors import InputError, first_line
from polyjax.runtime.files import temporary_folder

_NAME = re.compile(r"(?P<model>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
_READ = ("*.json", "*.txt", "*.safetensors", "README.md", KNOWN)
_LEFT = ("onnx/*", "openvino/*")
"""Exports of the same model for other runtimes; they are not downloaded."""


def hub_name(name: str | os.PathLike[str]) -> tuple[str, str | None] | None:
    """The hub model and revision that a name refers to; None if the name is a folder.

    A name counts as a folder if it exists, if its parent folder exists, or if it begins with ``runs/``.

    >>> hub_name("intfloat/multilingual-e5-small@fd1525a"), hub_name("bert"), hub_name("/models/bert")
    (('intfloat/multilingual-e5-small', 'fd1525a'), None, None)
    """
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    if found is None or Path(name).exists() or Path(name).parent.is_dir() or Path(name).parts[0] == "runs":
        return None
    return found["model"], found["revision"]


def model_folder(name: str | os.PathLike[str], argument: str | None = None) -> Path:
    """The local folder of a model; a hub model is downloaded into the hub's cache if it is not there yet.

    A cached copy is used without asking the hub whether a newer one exists.

    Args:
        name: a folder, or the name of a hub model.
        argument: the caller's argument, for error messages; without one, they begin with ``name``.

    Raises:
        InputError: the model is not in the cache and cannot be downloaded, or the extra is not installed.
    """
    found = hub_name(name)
    if found is None:
        return Path(name)
    hub = _library(argument, os.fspath(name))
    model, revision = found
    kept = {"revision": revision, "allow_patterns": list(_READ), "ignore_patterns": list(_LEFT)}
    with contextlib.suppress(OSError, ValueError):  # it is not in the cache
        folder = Path(hub.snapshot_download(model, local_files_only=True, **kept))
        if any(folder.rglob("*.safetensors")):  # another program may have cached other files only
            return folder
    try:
        return Path(hub.snapshot_download(model, **kept))
    except (OSError, ValueError) as error:
        problem, fix = _why(error, revision, offline=hub.constants.HF_HUB_OFFLINE)
        raise _failed(argument, os.fspath(name), problem, fix) from None


def _why(error: Exception, revision: str | None, *, offline: bool) -> tuple[str, str]:
    """The problem and the fix for an error of huggingface_hub, whose own messages have several lines."""
    kinds = {kind.__name__ for found in (error, error.__cause__) for kind in type(found).__mro__}
    if offline:
        return "not in the hub's cache, and HF_HUB_OFFLINE is set", "unset it, or name a folder"
    if "GatedRepoError" in kinds:
        return "the model's owner must grant access to it", "request access on its page; run: hf auth login"
    if "RevisionNotFoundError" in kinds:
        return f"the hub's model has no revision {revision!r}", "name a branch, a tag or a commit"
    if "RepositoryNotFoundError" in kinds:
        fix = "check the name; for a private model run: hf auth login"
        return "neither a folder nor a model of the hub that you may read", fix
    if "HFValidationError" in kinds:
        return f"neither a folder nor a name of the hub ({first_line(error)})", "check the name"
    problem = f"neither a folder nor in the hub's cache, and asking the hub failed ({first_line(error)})"
    return problem, "check the name and the connection"


def _failed(argument: str | None, name: str, problem: str, fix: str) -> InputError:
    if argument is None:
        return InputError.in_file(name, problem=problem, fix=fix)
    return InputError(argument, problem=problem, got=name, fix=fix)


def pinned(name: str, argument: str = "encoder") -> str:
    """A hub model's name with its current commit, ``organisation/model@commit``; a folder's name unchanged.

    Args:
        name: a folder, or the name of a hub model, which is downloaded if it is not in the cache.
        argument: the caller's argument, for error messages.

    Raises:
        InputError: as ``model_folder``.
    """
    found = hub_name(name)
    return name if found is None else f"{found[0]}@{model_folder(name, argument).name}"


def local_name(name: str) -> str:
    """The short name of a model, used to name run directories: the last part, without a revision.

    >>> local_name("BAAI/bge-small@5c38ec7"), local_name("/models/bert")
    ('bge-small', 'bert')
    """
    found = hub_name(name)
    return Path(name if found is None else found[0]).name


@contextlib.contextmanager
def folder_to_upload(model: str) -> Iterator[Path]:
    """The path of a temporary folder, which the caller creates; it is uploaded when the block ends.

    Args:
        model: ``organisation/model``, without a revision.

    Raises:
        InputError: the name has another form, the hub refuses the upload, or the extra is not installed.
    """
    if hub_name(model) != (model, None) and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model):
        raise InputError("model", expected="organisation/model", got=model)
    hub = _library("model", model)
    with temporary_folder() as place:
        folder = place / model.rpartition("/")[2]
        yield folder
        try:
            upload(hub, model, folder)
        except (OSError, ValueError) as error:
            raise InputError("model", problem=f"not uploaded: {first_line(error)}", got=model) from None


def upload(hub: ModuleType, model: str, folder: Path) -> None:
    """Upload a folder's files in one commit, creating the model repository if needed.

    Args:
        hub: the module ``huggingface_hub``.
        model: ``organisation/model``.
        folder: its files are uploaded.

    Raises:
        OSError, ValueError: as raised by huggingface_hub.
    """
    api = hub.HfApi()
    api.create_repo(model, exist_ok=True)
    api.upload_folder(repo_id=model, folder_path=folder, commit_message="Export of polyjax")


def _library(argument: str | None, name: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        problem = "not a local folder, and a model from the hub needs huggingface_hub"
        raise _failed(argument, name, problem, "run: pip install 'polyjax[hub]'") from None
    return huggingface_hub
