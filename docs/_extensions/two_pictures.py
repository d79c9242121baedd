"""A picture NAME.svg with a NAME-dark.svg beside it is shown in the variant that fits the theme."""

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class TwoPictures(SphinxTransform):
    """Adds the dark one; the theme hides one of them."""

    default_priority = 200  # before pictures are collected

    def apply(self, **kwargs: Any) -> None:
        """Change a page."""
        page = Path(self.env.doc2path(self.env.docname)).parent
        for image in list(self.document.findall(nodes.image)):
            path = Path(image["uri"])
            dark = path.with_name(f"{path.stem}-dark{path.suffix}")
            if not (page / dark).exists():
                continue
            other = image.deepcopy()
            image["classes"].append("only-light")
            other["classes"].append("only-dark")
            other["uri"] = str(dark)
            image.parent.insert(image.parent.index(image) + 1, other)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register."""
    app.add_transform(TwoPictures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
