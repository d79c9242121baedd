"""Pairs for pre-training: tokens of a corpus, plans of packed rows, masking."""
