"""Settings of Sphinx: the site is built by `make docs` into site/."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_extensions"), str(HERE.parent)]

project = "polyjax"
author = copyright = "The polyjax authors"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "edit_links",
    "faces",  # the reference: the names that a package lists
    "mathml",  # formulas without a script or a font from elsewhere
    "two_pictures",  # a light and a dark one
]
exclude_patterns = ["_extensions", "_static"]

# Pages
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # docs/run_notebooks.py runs them
nb_merge_streams = True
highlight_language = "bash"  # of blocks that are set in by four spaces: commands

# Docstrings
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
python_display_short_literal_types = True
default_role = "literal"

# The look. Everything is served from the site itself, and works from file:// too.
html_theme = "pydata_sphinx_theme"
html_title = "polyjax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/logo.svg"
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # would fetch pages, which file:// forbids
REPOSITORY = os.environ.get("POLYJAX_REPOSITORY", "polyjax/polyjax")  # on GitHub: edit links point there
html_context = {
    "default_mode": "auto",
    "github_user": REPOSITORY.split("/")[0],
    "github_repo": REPOSITORY.split("/")[1],
    "github_version": "main",
    "doc_path": "docs",
}
html_theme_options = {
    "logo": {"text": "polyjax", "image_light": "_static/logo.svg", "image_dark": "_static/logo.svg"},
    "use_edit_page_button": True,
    "header_links_before_dropdown": 8,
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "back_to_top_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"index": [], "tutorial": [], "design": []}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
