"""Edit links of notebooks, whose pages are copies: they lead to the file that is edited."""

from typing import Any

from sphinx.application import Sphinx


def context(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Name the source of a notebook's page."""
    folder, _, name = pagename.rpartition("/")
    if folder == "notebooks" and name != "index":
        context["doc_path"], context["page_source_suffix"] = "", ".py"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register before the theme, which makes the link."""
    app.connect("html-page-context", context, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
