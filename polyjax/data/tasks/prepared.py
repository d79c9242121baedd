"""The rows of published files, prepared once."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from polyjax.data.rows import Rows
from polyjax.data.tasks.source import OfficialFile, Source, note_of
from polyjax.types import Example


def prepared_rows(
    source: Source,
    form: str,
    folder: Path,
    files: Sequence[OfficialFile],
    parse: Callable[..., Iterator[Example]],
    *,
    data_dir: Path,
    unverified: bool,
) -> Rows:
    """The rows of files, prepared first if necessary; see ``builders.prepared_files``."""
    from polyjax.data.tasks import builders  # tensorflow-datasets: slow to import, needed here only

    name, official = builders.prepared_files(
        source, form, folder, files, parse, data_dir=data_dir, unverified=unverified
    )
    return Rows(
        builders.Prepared(source.task, data_dir, name, builders.example_of), note_of(files[0].name, official)
    )
