"""Models of other libraries. Faces: ``interop.huggingface``, ``interop.sentence_transformers``."""
