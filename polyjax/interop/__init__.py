"""Models of other libraries, by library. Faces: ``interop.huggingface``, ``interop.sentence_transformers``."""
