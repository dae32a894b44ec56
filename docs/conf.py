"""Sphinx: `make docs` builds with warnings as errors, from the installed package."""

import re

import cnorm

project = "cnorm"
copyright = "2026, cnorm developers"
release = version = cnorm.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "numpydoc",
]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = f"cnorm {release}"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

numpydoc_show_class_members = False
autosummary_generate = False
default_role = "code"  # `name` in a docstring is code, found or not
autodoc_member_order = "bysource"


def setup(app):
    app.connect("autodoc-process-docstring", escape_unpacking, priority=900)


def escape_unpacking(app, what, name, obj, options, lines):
    """Keep the star of ``(..., *normalized_shape)`` from opening an emphasis."""
    lines[:] = [re.sub(r"(?<= )\*(?=normalized_shape)", r"\\*", line) for line in lines]
