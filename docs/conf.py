"""Sphinx: `make docs` builds with warnings as errors, from the installed package."""

import importlib.util
import re
import sys
from pathlib import Path

import cnorm

sys.path.insert(0, str(Path(__file__).parent))  # where _formulas is

project = "cnorm"
copyright = "2026, cnorm developers"
release = version = cnorm.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "_formulas",
    "numpydoc",
]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = f"cnorm {release}"
html_static_path = ["_static"]
html_css_files = ["cnorm.css"]
html_math_renderer = "drawings"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

numpydoc_show_class_members = False
autosummary_generate = False
default_role = "code"  # `name` in a docstring is code, found or not
autodoc_member_order = "bysource"


def setup(app):
    app.connect("autodoc-process-docstring", escape_unpacking, priority=900)
    app.connect("source-read", leave_out_absent)
    app.connect("source-read", join_chinese_lines)


def escape_unpacking(app, what, name, obj, options, lines):
    """Keep the star of ``(..., *normalized_shape)`` from opening an emphasis.

    A module that is shown for the second time says nothing about itself.
    """
    if what == "module" and getattr(options, "no_index", None):
        lines.clear()
    lines[:] = [re.sub(r"(?<= )\*(?=normalized_shape)", r"\\*", line) for line in lines]


SECTION = re.compile(
    r"^<!-- section that needs (\w+) -->\n(.*?)(?=^<!-- section|^## The machine)",
    re.DOTALL | re.MULTILINE,
)


def leave_out_absent(app, docname, source):
    """Leave out the sections of the reference about libraries that are not installed here."""
    source[0] = SECTION.sub(lambda m: m[2] if importlib.util.find_spec(m[1]) else "", source[0])


CODE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
WIDE = "\u3000-\u9fff\uff00-\uffef"
BREAK = re.compile(rf"(?<=[{WIDE}])\n *(?=[{WIDE}])|(?<=[，。；：、）])\n *(?=[`\[A-Za-z])")


def join_chinese_lines(app, docname, source):
    """A line that ends in Chinese text goes on without the space that a page would show."""
    parts = CODE.split(source[0])
    parts[::2] = [BREAK.sub("", part) for part in parts[::2]]
    source[0] = "".join(parts)
