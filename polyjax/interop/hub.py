"""Models of the Hugging Face hub by their name, from its local cache or the hub (extra ``hub``).

Nothing here is imported, and no network is touched, for folders. A name is ``organisation/model``, with
``@revision`` after it for another than the newest: a branch, a tag or a commit.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from polyjax.errors import InputError, first_line

_NAME = re.compile(r"(?P<model>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
_READ = ("*.json", "*.txt", "*.safetensors", "README.md")
_LEFT = ("onnx/*", "openvino/*")
"""Folders of the same model for other programs."""


def hub_name(name: str | os.PathLike[str]) -> tuple[str, str | None] | None:
    """A hub's model and revision that a name stands for; None for a folder.

    What begins with ``runs``, or with another folder that is there, is a folder, be it there or not.

    >>> hub_name("intfloat/multilingual-e5-small@fd1525a"), hub_name("bert"), hub_name("/models/bert")
    (('intfloat/multilingual-e5-small', 'fd1525a'), None, None)
    """
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    if found is None or Path(name).exists() or Path(name).parent.is_dir() or Path(name).parts[0] == "runs":
        return None
    return found["model"], found["revision"]


def model_folder(name: str | os.PathLike[str], argument: str | None = None) -> Path:
    """The folder of a model: the one that is named, or the hub's in its cache.

    A copy in the cache is used as it is; the hub is asked only without one.

    Args:
        name: a folder, or a name of the hub.
        argument: the caller's, for messages; they begin with the name where None, as a file's do.

    Raises:
        InputError: the model is not in the cache and the hub does not give it, or the extra is not installed.
    """
    found = hub_name(name)
    if found is None:
        return Path(name)
    hub = _library(argument, os.fspath(name))
    model, revision = found
    kept = {"revision": revision, "allow_patterns": list(_READ), "ignore_patterns": list(_LEFT)}
    with contextlib.suppress(OSError, ValueError):  # it is not in the cache
        folder = Path(hub.snapshot_download(model, local_files_only=True, **kept))
        if any(folder.rglob("*.safetensors")):  # not a part of it that others asked for
            return folder
    try:
        return Path(hub.snapshot_download(model, **kept))
    except (OSError, ValueError) as error:
        problem, fix = _why(error, revision, offline=hub.constants.HF_HUB_OFFLINE)
        raise _failed(argument, os.fspath(name), problem, fix) from None


def _why(error: Exception, revision: str | None, *, offline: bool) -> tuple[str, str]:
    """What is wrong and what to do, of an error of the library, whose own messages are several lines."""
    kinds = {kind.__name__ for found in (error, error.__cause__) for kind in type(found).__mro__}
    if offline:
        return (
            "not in the hub's cache, and HF_HUB_OFFLINE is set",
            "unset it, or name a folder",
        )
    if "GatedRepoError" in kinds:
        return "the hub gives this model to those only whom its owner lets", "ask there; run: hf auth login"
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
    """The name with the commit that it stands for now; a folder's as it is.

    Args:
        name: a folder, or a name of the hub, whose files are brought into its cache.
        argument: the caller's, for messages.

    Raises:
        InputError: as ``model_folder``.
    """
    found = hub_name(name)
    return name if found is None else f"{found[0]}@{model_folder(name, argument).name}"


def local_name(name: str) -> str:
    """What a run directory is called after: the last part, without a revision.

    >>> local_name("BAAI/bge-small@5c38ec7"), local_name("/models/bert")
    ('bge-small', 'bert')
    """
    found = hub_name(name)
    return Path(name if found is None else found[0]).name


@contextlib.contextmanager
def folder_to_upload(model: str) -> Iterator[Path]:
    """A temporary folder, not made yet, that is uploaded as a model when the block ends.

    Args:
        model: ``organisation/model``.

    Raises:
        InputError: it is no such name, the hub refuses it, or the extra is not installed.
    """
    if hub_name(model) != (model, None) and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model):
        raise InputError("model", expected="organisation/model", got=model)
    hub = _library("model", model)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / model.rpartition("/")[2]
        yield folder
        try:
            upload(hub, model, folder)
        except (OSError, ValueError) as error:
            raise InputError("model", problem=f"not uploaded: {first_line(error)}", got=model) from None


def upload(hub: ModuleType, model: str, folder: Path) -> None:
    """Make the repository where it is not there, and put a folder's files into it, in one commit."""
    api = hub.HfApi()
    api.create_repo(model, exist_ok=True)
    api.upload_folder(repo_id=model, folder_path=folder, commit_message="Export of polyjax")


def _library(argument: str | None, name: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        problem, fix = (
            "not a folder, and a model of the hub needs huggingface_hub",
            "run: pip install 'polyjax[hub]'",
        )
        raise _failed(argument, name, problem, fix) from None
    return huggingface_hub
