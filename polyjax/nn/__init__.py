"""Layers, encoders, heads and scorers. Faces: ``polyjax.nn.encoders``, ``polyjax.nn.heads``."""
