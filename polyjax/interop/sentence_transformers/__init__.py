"""Reads and writes folders of sentence-transformers: bi-encoders (pooling, prompts) and cross-encoders."""

from polyjax.interop.sentence_transformers.folder import PROMPTS, EncoderFolder, read_folder
from polyjax.interop.sentence_transformers.load import check_vocabulary, load_folder, load_head
from polyjax.interop.sentence_transformers.modules import MODULES
from polyjax.interop.sentence_transformers.write import write_folder

__all__ = [
    "MODULES",
    "PROMPTS",
    "EncoderFolder",
    "check_vocabulary",
    "load_folder",
    "load_head",
    "read_folder",
    "write_folder",
]
