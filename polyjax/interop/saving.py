"""Saving a ranker's model in the format of other libraries, and its origin on the hub."""

import os
from pathlib import Path
from typing import TypeVar

from polyjax.data.known import load_seen
from polyjax.inference.arguments import check_folder
from polyjax.inference.scorer import TextScorer
from polyjax.interop.hub import folder_to_upload

Model = TypeVar("Model")


def with_origin(model: Model, origin: str | None) -> Model:
    """Set the model's ``origin`` and return the model."""
    model.origin = origin  # pyright: ignore[reportAttributeAccessIssue]  # of a SavesModel
    return model


class SavesModel:
    """A model that can be saved as a folder of sentence-transformers.

    Attributes:
        scorer: the model with its tokenizer.
        folder: that the model was loaded from; None if it was made in memory.
        origin: the hub model that it is, or was trained from, as ``organisation/model@commit``; None if it
            does not come from the hub.
    """

    scorer: TextScorer
    folder: Path | None = None
    origin: str | None = None

    def save_pretrained(self, folder: str | os.PathLike[str], *, name: str | None = None) -> None:
        """Save the model as a folder that sentence-transformers and compatible libraries load.

        A bi-encoder becomes a SentenceTransformer with the same embeddings. A cross-encoder whose head is its
        family's classifier becomes a CrossEncoder with the same scores. ``Ranker.load`` reads the folder too.
        Digests of the rows that a run was trained on go along, so that testing on them is noticed.

        Args:
            folder: must not exist yet; it is written completely or not at all.
            name: the model's name in README.md, as ``organisation/model``; the folder's name by default.

        Raises:
            InputError: sentence-transformers has no equivalent of the model (two separate transformers, a
                poly-encoder, ...), it was not loaded in float32, or the folder exists or cannot be written.
        """
        from polyjax.interop.sentence_transformers import write_folder  # not imported to rank

        check_folder(folder)
        write_folder(
            self.scorer,
            Path(folder),
            name=name or Path(folder).name,
            base=self.origin,
            trained_on=None if self.folder is None else load_seen(self.folder),
        )

    def push_to_hub(self, model: str) -> None:
        """Upload the model to the Hugging Face hub in one commit, as ``save_pretrained`` writes it.

        Needs the extra ``hub`` and a login (``hf auth login``).

        Args:
            model: ``organisation/model``; the repository is created if it does not exist.

        Raises:
            InputError: as ``save_pretrained``, or the hub refuses the upload, or the extra is not installed.
        """
        with folder_to_upload(model) as folder:
            self.save_pretrained(folder, name=model)
