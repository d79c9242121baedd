"""tensorflow-datasets builders of the tasks: prepared once as array_record, then memory-mapped.

TensorFlow is not needed, neither to prepare nor to read.
"""

import contextlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import tensorflow_datasets as tfds

from polyjax.data.tasks import chitchat
from polyjax.progress import console
from polyjax.types import InputError


class Chitchat(tfds.core.GeneratorBasedBuilder):
    """Conversations of the chitchat corpus; see polyjax.data.tasks.chitchat for the rules.

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
        for conversation in chitchat.parse_conversations(path):
            if chitchat.split_of(conversation.id) == split:
                yield conversation.id, {"id": conversation.id, "turns": list(conversation.turns)}


BUILDERS: dict[str, type[tfds.core.GeneratorBasedBuilder]] = {"chitchat": Chitchat}


def prepared(name: str, data_dir: Path, source: Callable[[], Path]) -> Mapping[str, Sequence[dict[str, Any]]]:
    """The splits of a builder's data under ``data_dir``, random access, prepared first where absent.

    Args:
        name: key of BUILDERS.
        data_dir: where prepared data is kept; tensorflow-datasets writes aside and renames.
        source: gives (and checks) the file to prepare from; called only where it is needed.

    Raises:
        InputError: ``data_dir`` cannot be written.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of folders that are not there yet
    try:
        builder = BUILDERS[name](data_dir=data_dir, file_format="array_record")
        if not builder.is_prepared():
            config = tfds.download.DownloadConfig(manual_dir=source().parent)
            console.print(f"preparing {name} in {data_dir} (once)")
            tfds.disable_progress_bar()
            with contextlib.redirect_stdout(io.StringIO()):  # it talks of downloads; there are none
                builder.download_and_prepare(download_config=config)
    except OSError as error:
        raise InputError(f"task.data_dir {str(data_dir)!r} cannot be written: {error}") from None
    return cast(Mapping[str, Sequence[dict[str, Any]]], builder.as_data_source())
