"""tensorflow-datasets builders of the tasks: prepared once as array_record, then memory-mapped.

TensorFlow is not needed, neither to prepare nor to read.
"""

import contextlib
import dataclasses
import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import tqdm_utils

from polyjax.data.tasks import chitchat_corpus
from polyjax.data.tasks.source import OfficialFile, Source, find, locate
from polyjax.errors import InputError
from polyjax.runtime.progress import console
from polyjax.types import Example

_AT_ONCE = 1000
"""Rows that are decoded together when all are read."""


class Chitchat(tfds.core.GeneratorBasedBuilder):
    """Conversations of the chitchat corpus; see polyjax.data.tasks.chitchat_corpus for the rules.

    ``manual_dir`` holds the corpus file, dataset.json of the package chitchat-dataset.
    """

    name = "chitchat"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "pip install chitchat-dataset; its dataset.json is the file"

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Human small talk: conversations of the BYU Chit-Chat Challenge corpus (MIT).",
            features=tfds.features.FeaturesDict(
                {"id": tfds.features.Text(), "turns": tfds.features.Sequence(tfds.features.Text())}
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        path = Path(os.fspath(dl_manager.manual_dir)) / "dataset.json"
        return {split: self._generate_examples(path, split) for split in ("train", "valid", "test")}

    def _generate_examples(self, path: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for conversation in chitchat_corpus.parse_conversations(path):
            if chitchat_corpus.split_of(conversation.id) == split:
                yield conversation.id, {"id": conversation.id, "turns": list(conversation.turns)}


def _no_rows() -> Iterator[Any]:
    return iter(())


@dataclasses.dataclass(eq=False, kw_only=True)
class FilesConfig(tfds.core.BuilderConfig):
    """Which files a builder reads: its name says the form, the split and the state of the files.

    Attributes:
        rows: gives the rows of the files; needed to prepare only.
    """

    rows: Callable[[], Iterator[Any]] = _no_rows


class _FromFiles(tfds.core.GeneratorBasedBuilder):
    """Rows of a published data set's files, in their order; one split a configuration."""

    VERSION = tfds.core.Version("1.0.1")  # changes whenever the readers give other rows
    MANUAL_DOWNLOAD_INSTRUCTIONS = "see polyjax.data.tasks for the files and where they were published"
    SPLIT = "rows"

    def _features(self) -> tfds.features.FeaturesDict:
        text = tfds.features.Text
        return tfds.features.FeaturesDict(
            {
                "id": text(),
                "context": tfds.features.Sequence(text()),
                "candidates": tfds.features.Sequence(text()),
                "label": tfds.features.Scalar(dtype=np.int64),
                "group": text(),
            }
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=self._features(), disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {self.SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        config, names, i = cast(FilesConfig, self.builder_config), list(self._features()), -1
        for i, row in enumerate(config.rows()):
            yield i, {name: _plain(getattr(row, name)) for name in names}
        if i < 0:
            raise InputError(config.name, problem="its file holds no rows", is_argument=False)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class ConvAI2(_FromFiles):
    """Rows of polyjax.data.tasks.convai2."""

    name = "convai2"


class DSTC7(_FromFiles):
    """Rows of polyjax.data.tasks.dstc7."""

    name = "dstc7"


class UbuntuV2(_FromFiles):
    """Rows of polyjax.data.tasks.ubuntu_v2."""

    name = "ubuntu_v2"


class WikipediaSearch(_FromFiles):
    """Articles of polyjax.data.tasks.wikipedia_search."""

    name = "wikipedia_search"

    def _features(self) -> tfds.features.FeaturesDict:
        text = tfds.features.Text
        return tfds.features.FeaturesDict({"title": text(), "sentences": tfds.features.Sequence(text())})


BUILDERS: dict[str, type[tfds.core.GeneratorBasedBuilder]] = {
    builder.name: builder for builder in (Chitchat, ConvAI2, DSTC7, UbuntuV2, WikipediaSearch)
}


def prepared(name: str, data_dir: Path, source: Callable[[], Path]) -> Mapping[str, Sequence[dict[str, Any]]]:
    """The splits of a builder's data under ``data_dir``, random access, prepared first where absent.

    Args:
        name: key of BUILDERS.
        data_dir: where prepared data is kept; tensorflow-datasets writes aside and renames.
        source: gives (and checks) the file to prepare from; called only where it is needed.

    Raises:
        InputError: ``data_dir`` cannot be written.
    """
    builder = _builder(name, data_dir)
    if not _is_prepared(builder):
        _prepare(builder, source().parent, data_dir)
    return cast(Mapping[str, Sequence[dict[str, Any]]], builder.as_data_source())


def _builder(name: str, data_dir: Path, config: FilesConfig | None = None) -> tfds.core.GeneratorBasedBuilder:
    try:
        with absl_quiet():
            return BUILDERS[name](data_dir=data_dir, file_format="array_record", config=config)
    except OSError as error:
        raise InputError("task.data_dir", problem=f"cannot be read: {error}", got=str(data_dir)) from None


def _is_prepared(builder: tfds.core.GeneratorBasedBuilder) -> bool:
    with absl_quiet():
        return builder.is_prepared()


@contextlib.contextmanager
def absl_quiet() -> Iterator[None]:
    """Silence tensorflow-datasets' warnings about missing folders; the logger's level is restored."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Hide tensorflow-datasets' progress bars; the setting is restored."""
    before = getattr(tqdm_utils, "_active", True)  # has no public reader
    tfds.display_progress_bar(enable=False)
    try:
        yield
    finally:
        tfds.display_progress_bar(enable=before)


def _prepare(builder: tfds.core.GeneratorBasedBuilder, folder: Path, data_dir: Path) -> None:
    config = tfds.download.DownloadConfig(manual_dir=folder)
    console.print(f"preparing {builder.name} in {data_dir} (once)")
    try:
        with (
            absl_quiet(),
            no_bars(),
            contextlib.redirect_stdout(io.StringIO()),
        ):  # it reports downloads, although nothing is downloaded
            builder.download_and_prepare(download_config=config)
    except OSError as error:
        if _is_prepared(builder):  # by another process, meanwhile
            return
        raise InputError("task.data_dir", problem=f"cannot be written: {error}", got=str(data_dir)) from None


T = TypeVar("T")


class Prepared(Sequence[T]):
    """Rows on disk, decoded when they are asked for.

    Args:
        name: key of BUILDERS.
        data_dir: where prepared data is kept.
        config: name of the prepared configuration.
        decode: gives the object that a row's features stand for; a function of a module, so that a worker
            process can be sent it.
    """

    def __init__(self, name: str, data_dir: Path, config: str, decode: Callable[[dict[str, Any]], T]):
        self._key = name, data_dir, config, decode
        self._decoded = decode
        builder = _builder(name, data_dir, FilesConfig(name=config))
        self._rows: Any = cast(Mapping[str, Any], builder.as_data_source())[_FromFiles.SPLIT]

    def __reduce__(self) -> tuple:
        """A worker process opens the files again."""
        return Prepared, self._key

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        """A row, or several."""
        if isinstance(index, slice):
            places = list(range(*index.indices(len(self))))
            return [self._decoded(row) for row in (self._rows.__getitems__(places) if places else [])]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._decoded(self._rows[int(index) % len(self)])

    def __iter__(self) -> Iterator[T]:
        """All rows."""
        for start in range(0, len(self), _AT_ONCE):
            yield from self[start : start + _AT_ONCE]


def example_of(row: dict[str, Any]) -> Example:
    """A task's row."""
    return Example(
        row["id"].decode(),
        _texts(row["context"]),
        _texts(row["candidates"]),
        int(row["label"]),
        row["group"].decode(),
    )


def _texts(encoded: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(text.decode() for text in encoded)


def prepared_files(
    source: Source,
    form: str,
    folder: Path,
    files: Sequence[OfficialFile],
    parse: Callable[..., Iterator[Any]],
    *,
    data_dir: Path,
    unverified: bool,
) -> tuple[str, bool]:
    """The configuration under which files' rows are kept, prepared first where they are not.

    What was prepared belongs to the files' names, sizes and times of change: a changed file is read again.

    Args:
        source: of the data set; ``source.task`` is a key of BUILDERS.
        form: of the rows; a short name, part of the configuration's.
        folder: where the user keeps the data set.
        files: that are read.
        parse: called with the files' paths; gives the rows.
        data_dir: where prepared data is kept.
        unverified: take files that are not known to be the official ones.

    Returns:
        The configuration's name, and whether the files are known to be the official ones.

    Raises:
        InputError: a file is missing, broken, or not the official one; ``data_dir`` cannot be written.
    """
    paths = [find(folder, file, source) for file in files]
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    state = hashlib.sha1(repr(states).encode()).hexdigest()[:12]
    names = {True: f"{form}-official-{state}", False: f"{form}-unverified-{state}"}
    for official in (True, False) if unverified else (True,):
        if _is_prepared(_builder(source.task, data_dir, FilesConfig(name=names[official]))):
            return names[official], official
    official = all([locate(folder, file, source, unverified=unverified)[1] for file in files])
    config = FilesConfig(name=names[official], rows=lambda: parse(*paths))
    _prepare(_builder(source.task, data_dir, config), folder, data_dir)
    return names[official], official
