"""Draw which values share a mean and a variance, one picture for each norm.

    python docs/_draw_axes.py        # writes docs/pictures/*.svg, and zh/*.svg there in Chinese

A batch is drawn as a block: samples N to the right, channels C into the page, everything
spatial S downwards. Coloured values are one unit: they are normalized together. Plain SVG, so
that no drawing library is needed and the files stay readable.
"""

from pathlib import Path

N, C, S = 4, 6, 5  # values along each axis of a block
CELL, DEPTH = 26, (13, -9)  # a value's side in pixels, and one step into the page
INK, PLAIN = "#37474f", ("#f5f7f8", "#e9eef0", "#dde4e7")  # edges; front, top and side faces
COLOURS = {
    "blue": ("#4da3e0", "#3a8fcc", "#2c7cb6"),
    "orange": ("#f2a541", "#de9130", "#c67d22"),
    "green": ("#5fb878", "#4fa468", "#418f59"),
    "red": ("#e0604d", "#c94f3d", "#b04030"),
}
LEFT, TOP, GAP = 52, 112, 64  # around and between the blocks
BLOCK_WIDTH = N * CELL + C * DEPTH[0]


def polygon(points, fill):
    text = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polygon points="{text}" fill="{fill}" stroke="{INK}" stroke-width="0.7"/>'


def words(x, y, text, size=12, anchor="middle", weight="normal"):
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}" fill="{INK}">{text}</text>'
    )


def block(x0, y0, colour_of, axes, title):
    """Return one block; `colour_of(n, c, s)` names a value's colour, or is None."""

    def at(n, c, s):
        return x0 + n * CELL + c * DEPTH[0], y0 + s * CELL + c * DEPTH[1]

    def face(corners, n, c, s, side):
        colour = colour_of(n, c, s)
        fill = COLOURS[colour][side] if colour else PLAIN[side]
        return polygon([at(*corner) for corner in corners], fill)

    parts = []
    for n in range(N):  # the front: the first channel
        for s in range(S):
            corners = [(n, 0, s), (n + 1, 0, s), (n + 1, 0, s + 1), (n, 0, s + 1)]
            parts.append(face(corners, n, 0, s, 0))
    for n in range(N):  # the top: the first position
        for c in range(C):
            corners = [(n, c, 0), (n + 1, c, 0), (n + 1, c + 1, 0), (n, c + 1, 0)]
            parts.append(face(corners, n, c, 0, 1))
    for c in range(C):  # the side: the last sample
        for s in range(S):
            corners = [(N, c, s), (N, c + 1, s), (N, c + 1, s + 1), (N, c, s + 1)]
            parts.append(face(corners, N - 1, c, s, 2))
    right, down, inwards = axes
    parts.append(words(x0 + N * CELL / 2, y0 + S * CELL + 18, f"{right} →"))
    parts.append(words(x0 - 8, y0 + S * CELL / 2, f"{down} ↓", anchor="end"))
    x, y = at(N, C / 2, S)
    parts.append(words(x + 8, y + 14, f"{inwards} ↗", anchor="start"))
    parts.append(words(x0 + BLOCK_WIDTH / 2, y0 + C * DEPTH[1] - 14, title))
    return parts


def picture(heading, blocks):
    """Return a whole picture: a heading over one or more (colour_of, axes, title)."""
    step = BLOCK_WIDTH + GAP
    width, height = LEFT + step * len(blocks), TOP + S * CELL + 34
    parts = [words(width / 2, 20, heading, 13, weight="bold")]
    for i, (colour_of, axes, title) in enumerate(blocks):
        parts += block(LEFT + i * step, TOP, colour_of, axes, title)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            *parts,
            "</svg>\n",
        ]
    )


IMAGES, TOKENS = ("N", "S", "C"), ("N", "T", "L")
LAST = N - 1  # the sample whose side is seen


def batch(n, c, s):
    return "blue" if c == 0 else None


def instance(n, c, s):
    return "blue" if (n, c) == (LAST, 0) else None


def group(n, c, s):
    if n != LAST:
        return None
    return "blue" if c < C // 2 else "orange"


def sample(n, c, s):
    return "blue" if n == LAST else None


def row(n, c, s):
    return "blue" if (n, s) == (LAST, 0) else None


def window(n, c, s):
    if (n, s) != (LAST, 0) or not 1 <= c <= 5:
        return None
    return "red" if c == 3 else "orange"


def recoloured(unit, colour):
    return lambda n, c, s: colour if unit(n, c, s) else None


PICTURES = {
    "batch": (
        "One channel of all samples",
        [(batch, IMAGES, "BatchNorm")],
    ),
    "instance": (
        "One channel of one sample",
        [(instance, IMAGES, "InstanceNorm")],
    ),
    "group": (
        "A group of channels of one sample",
        [(group, IMAGES, "GroupNorm, 2 groups")],
    ),
    "layer": (
        "The last axes, everything else apart",
        [(row, TOKENS, "LayerNorm(L): each token"), (sample, IMAGES, "LayerNorm((C, H, W))")],
    ),
    "rms": (
        "The last axes; no mean is taken",
        [(row, TOKENS, "RMSNorm(L): each token")],
    ),
    "response": (
        "A value (red) and its neighbours",
        [(window, IMAGES, "LocalResponseNorm(5)")],
    ),
    "switch": (
        "A learned mixture of three",
        [
            (recoloured(instance, "blue"), IMAGES, "InstanceNorm's"),
            (recoloured(sample, "orange"), IMAGES, "LayerNorm's"),
            (recoloured(batch, "green"), IMAGES, "BatchNorm's"),
        ],
    ),
    "sync": (
        "One channel of all samples of all ranks",
        [(batch, IMAGES, "rank 0"), (batch, IMAGES, "rank 1")],
    ),
}


# Names of layers and of axes stay as they are in the code; whoever reads the page has the font.
CHINESE = {
    "One channel of all samples": "整批样本的同一个通道",
    "One channel of one sample": "一个样本的一个通道",
    "A group of channels of one sample": "一个样本的一组通道",
    "GroupNorm, 2 groups": "GroupNorm，分 2 组",
    "The last axes, everything else apart": "最后几个轴一起算，其余各算各的",
    "LayerNorm(L): each token": "LayerNorm(L)：逐个词元",
    "The last axes; no mean is taken": "最后几个轴一起算，不减均值",
    "RMSNorm(L): each token": "RMSNorm(L)：逐个词元",
    "A value (red) and its neighbours": "一个值（红）和它相邻的通道",
    "A learned mixture of three": "三种统计量按学到的权重混合",
    "InstanceNorm's": "InstanceNorm 的",
    "LayerNorm's": "LayerNorm 的",
    "BatchNorm's": "BatchNorm 的",
    "One channel of all samples of all ranks": "所有进程、所有样本的同一个通道",
    "rank 0": "进程 0",
    "rank 1": "进程 1",
}


def main():
    folder = Path(__file__).parent / "pictures"
    (folder / "zh").mkdir(parents=True, exist_ok=True)
    for name, (heading, blocks) in PICTURES.items():
        (folder / f"{name}.svg").write_text(picture(heading, blocks))
        blocks = [(*rest, CHINESE.get(title, title)) for *rest, title in blocks]
        chinese = picture(CHINESE[heading], blocks)
        (folder / "zh" / f"{name}.svg").write_text(chinese, encoding="utf-8")


if __name__ == "__main__":
    main()
