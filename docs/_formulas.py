"""Formulas as drawings inside the page, made when it is built: a reader fetches nothing for them.

ziamath sets TeX in its own fonts. A drawing takes the colour and the size of the text around it.
Its label, which a screen reader speaks, is the TeX.
"""

import re
from html import escape

import ziamath
from docutils import nodes

SIZE = 16  # pixels, of which the lengths of a drawing become em
ziamath.config.svg2 = False  # paths, no symbols whose names would be those of other formulas
ziamath.config.precision = 1


def drawing(tex, inline):
    """The SVG of a formula."""
    text = " ".join(tex.split())
    formula = ziamath.Latex(text, size=SIZE, inline=inline, color="currentColor")
    svg, below = formula.svg(), formula.getyofst() / SIZE
    pixels = re.search(r'width="(.*?)" height="(.*?)"', svg).groups()
    width, height = (float(n) / SIZE for n in pixels)
    style = f"width: {width:.3f}em; height: {height:.3f}em; vertical-align: {below:.3f}em"
    label = f'role="img" aria-label="{escape(text)}" style="{style}"'
    return re.sub(r' width=".*?" height=".*?"', lambda _: f" {label}", svg, count=1)


def visit_math(writer, node):
    writer.body.append(drawing(node.astext(), inline=True))
    raise nodes.SkipNode


def visit_math_block(writer, node):
    writer.body.append(f'<div class="formula">{drawing(node.astext(), inline=False)}</div>\n')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("drawings", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
