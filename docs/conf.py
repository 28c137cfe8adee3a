"""Configuration of Sphinx, which `make docs` runs."""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "Hoststack"
author = "the authors of Hoststack"
version = release = version_of("hoststack")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "Hoststack"
html_show_copyright = False

myst_heading_anchors = 4

add_module_names = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints_format = "short"
# Docstrings write code in single backquotes.
default_role = "literal"
