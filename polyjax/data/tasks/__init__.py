"""Tasks by name. A new dataset is a function ``read(config, split) -> list[Example]`` and an entry here."""
