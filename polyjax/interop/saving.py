"""What a ranker's model can be written as, for other libraries."""

import os
from pathlib import Path

from polyjax.inference.arguments import check_folder
from polyjax.inference.scorer import TextScorer
from polyjax.interop.sentence_transformers import write_folder


class SavesModel:
    """Writes a model as a folder of sentence-transformers.

    Attributes:
        scorer: the model with its tokenizer.
    """

    scorer: TextScorer

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
        write_folder(self.scorer, Path(folder), name=name or Path(folder).name)
