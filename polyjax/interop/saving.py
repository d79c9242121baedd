"""What a ranker's model can be written as, for other libraries, and where it is from."""

import os
from pathlib import Path
from typing import TypeVar

from polyjax.inference.arguments import check_folder
from polyjax.inference.scorer import TextScorer
from polyjax.interop.hub import folder_to_upload
from polyjax.interop.sentence_transformers import write_folder

Model = TypeVar("Model")


def with_origin(model: Model, origin: str | None) -> Model:
    """The model, which now knows where it is from."""
    model.origin = origin  # pyright: ignore[reportAttributeAccessIssue]  # of a SavesModel
    return model


class SavesModel:
    """Writes a model as a folder of sentence-transformers.

    Attributes:
        scorer: the model with its tokenizer.
        origin: the hub's model that it is, or was trained from, with its commit, as
            ``organisation/model@commit``; None for another or none.
    """

    scorer: TextScorer
    origin: str | None = None

    def save_pretrained(self, folder: str | os.PathLike[str], *, name: str | None = None) -> None:
        """Write the model as a folder that sentence-transformers, and others that read its folders, load.

        A bi-encoder becomes a SentenceTransformer with the same embeddings, a cross-encoder whose head is its
        family's classifier a CrossEncoder with the same scores; ``Ranker.load`` reads the folder, too.

        Args:
            folder: must not exist yet; it is written whole or not at all.
            name: of the model on its page, as ``organisation/model``; the folder's by default.

        Raises:
            InputError: the model has no form there (two separate transformers, a poly-encoder, ...), it was
                not loaded in float32, or the folder exists or cannot be written.
        """
        check_folder(folder)
        write_folder(self.scorer, Path(folder), name=name or Path(folder).name, base=self.origin)

    def push_to_hub(self, model: str) -> None:
        """Upload what ``save_pretrained`` writes to the Hugging Face hub (extra ``hub``), in one commit.

        Args:
            model: ``organisation/model``; made where it is not there. Log in first, with ``hf auth login``.

        Raises:
            InputError: as ``save_pretrained``, or the hub refuses it, or the extra is not installed.
        """
        with folder_to_upload(model) as folder:
            self.save_pretrained(folder, name=model)
