"""``polyjax index``: build an index of candidates, add to it, remove from it."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from polyjax.cli.flags import command_of, parse_flags, user_errors
from polyjax.data.candidates import candidate_lines
from polyjax.errors import InputError
from polyjax.mesh.placement import make_mesh
from polyjax.nn.encoders import Dtype
from polyjax.ranker import Ranker
from polyjax.recipes.models import ModelName, load_ranker
from polyjax.retrieval.index.build import add_to_index, check_dual
from polyjax.retrieval.index.change import compact, remove
from polyjax.retrieval.index.manifest import read_manifest
from polyjax.retrieval.index.rows import IndexDtype
from polyjax.retrieval.index.store import open_index
from polyjax.retrieval.index.texts import ids_of
from polyjax.retrieval.making import say_losses
from polyjax.runtime.compilation import enable_compilation_cache
from polyjax.runtime.progress import errors, meter

Model = Annotated[ModelName, tyro.conf.Positional]
CandidateFile = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CANDIDATES")]
IndexFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]


@dataclasses.dataclass(frozen=True)
class Build:
    """Encode a file of candidates into an index; the same command resumes an interrupted build.

    Attributes:
        run_dir: a bi- or poly-encoder: a run directory, a folder of sentence-transformers or transformers,
            ``organisation/model`` of the hub, or ``minilm``.
        candidates: a file with one candidate per line, whose id is the line's number (from 0). Of several
            copies, the first is kept.
        index: the folder to create.
        dtype: dtype of the stored vectors; bytes per number: float32 6 (with a bfloat16 copy), bfloat16 2,
            int8 1.
        compute_dtype: dtype of the encoder's computation; that of the model by default.
        step: a saved step; the best one by default.
        mesh: devices that share the encoding, such as ``data=4``; all by default.
        replace: replace an existing index, at the end, when the new one is complete.
    """

    run_dir: Model
    candidates: CandidateFile
    index: IndexFolder
    dtype: IndexDtype = "float32"
    compute_dtype: Dtype | None = None
    step: int | None = None
    mesh: str = ""
    replace: bool = False


@dataclasses.dataclass(frozen=True)
class Add:
    """Encode more candidates into an index; those that it already holds are skipped.

    Attributes:
        run_dir: the model that the index was built with.
        candidates: a file with one candidate per line.
        index: folder of the index.
        compute_dtype: the ``--compute-dtype`` that the index was built with.
        step: the ``--step`` that the index was built with.
        mesh: devices that share the encoding, such as ``data=4``; all by default.
    """

    run_dir: Model
    candidates: CandidateFile
    index: IndexFolder
    compute_dtype: Dtype | None = None
    step: int | None = None
    mesh: str = ""


@dataclasses.dataclass(frozen=True)
class Remove:
    """Remove candidates from an index, by their texts or their ids.

    Attributes:
        index: folder of the index.
        candidates: a file with one text per line.
        ids: ids of candidates, from search results.
    """

    index: IndexFolder
    candidates: Path | None = None
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raise InputError if neither or both are given."""
        if (self.candidates is None) == (not self.ids):
            raise InputError("ids", problem="give what to remove: either `candidates` FILE or `ids`")


@dataclasses.dataclass(frozen=True)
class Compact:
    """Rewrite an index without the removed candidates, to free their space.

    Attributes:
        index: folder of the index.
    """

    index: IndexFolder


@dataclasses.dataclass(frozen=True)
class Info:
    """Show the content of an index and the model that it was built with.

    Attributes:
        index: folder of the index.
    """

    index: IndexFolder


IndexCommand = Build | Add | Remove | Compact | Info
INDEX_COMMANDS = {"build": Build, "add": Add, "remove": Remove, "compact": Compact, "info": Info}


def run_index(command: IndexCommand, say: Callable[[str], None]) -> None:
    """Run an index command.

    Args:
        command: the command with its settings.
        say: called with a line about the outcome.

    Raises:
        InputError: a file, the model or the index is missing or broken, or they do not match.
    """
    match command:
        case Build():
            texts = candidate_lines(command.candidates)
            index = _ranker(command).index(texts, command.index, dtype=command.dtype, replace=command.replace)
            say(f"{command.index}: {len(index):,} candidates, {command.dtype}")
        case Add():
            texts, scorer = candidate_lines(command.candidates), _ranker(command).scorer
            before = read_manifest(command.index).next_id
            with meter("encoding", len(texts), unit="candidates", out=errors) as bar:
                given = add_to_index(command.index, texts, scorer, progress=bar.add)
            say_losses(texts, scorer)
            ids = sorted({id_ for id_ in given if id_ >= before})
            added = f"ids {ids[0]} to {ids[-1]}" if ids else "nothing new"
            say(f"{command.index}: {len(ids):,} of {len(texts):,} candidates added ({added})")
        case Remove():
            say(f"{command.index}: {remove(command.index, _ids(command)):,} candidates removed")
        case Compact():
            say(f"{command.index}: {compact(command.index):,} removed candidates dropped")
        case Info():
            say("\n".join(describe(command.index)))


def describe(folder: Path) -> list[str]:
    """Lines that describe an index: candidates, vectors, size, next id, model, source."""
    manifest, index = read_manifest(folder), open_index(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    source = manifest.source[:16]
    texts = f"texts with digest {source}" if source else "texts, some added or removed since"
    return [
        f"candidates    {len(index):,} ({manifest.n_removed:,} removed, {len(index.segments)} segments)",
        f"vectors       {manifest.dtype}, {manifest.dim} wide",
        f"on disk       {size / 1e6:,.1f} MB",
        f"next id       {manifest.next_id}",
        f"model         {manifest.model.weights[:16]}, in {manifest.model.arithmetic}",
        f"built from    {texts}",
    ]


def _ranker(command: Build | Add) -> Ranker:
    """The model that encodes; InputError for a cross-encoder."""
    mesh = make_mesh(command.mesh)
    ranker = load_ranker(command.run_dir, step=command.step, dtype=command.compute_dtype, mesh=mesh)
    check_dual(ranker.scorer)
    return ranker


def _ids(command: Remove) -> list[int]:
    if command.candidates is None:
        return list(command.ids)
    texts = candidate_lines(command.candidates, strip=False)
    try:
        return ids_of(open_index(command.index), texts)
    except InputError as error:
        if error.argument != "texts":
            raise
        raise InputError.in_file(command.candidates, problem=error.problem, fix=error.fix) from None


def parse(arguments: Sequence[str], *, prog: str = "polyjax index") -> IndexCommand:
    """Parse the arguments of ``polyjax index``.

    Raises:
        InputError: the command is unknown, or its flags are invalid.
    """
    name, rest = command_of(arguments, INDEX_COMMANDS, prog)
    return parse_flags(INDEX_COMMANDS[name], rest, prog=f"{prog} {name}")


def main(arguments: Sequence[str], *, prog: str = "polyjax index") -> None:
    """Parse and run; invalid input is one line and exit status 2."""
    with user_errors():
        command = parse(arguments, prog=prog)
        enable_compilation_cache()
        run_index(command, print)
