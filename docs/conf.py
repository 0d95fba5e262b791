"""Sphinx: `sphinx-build -W --keep-going docs build/site`. Pages are Markdown; the API is read from docstrings."""

import re
from typing import Any

from wsbench import __version__

project = "wsbench"
copyright = "the wsbench authors, Apache-2.0"
release = version = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = f"wsbench {version}"
exclude_patterns = ["build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
# Signatures say the types; autodoc orders members as the source does.
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
napoleon_google_docstring = True


def _escape_shapes(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """In a docstring's ``(N, C, *)`` the star is any further dimensions, not the start of an emphasis."""
    lines[:] = [re.sub(r"(?<!\*)\*(?=[),])", r"\\*", line) for line in lines]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _escape_shapes)
