"""Draw what padding does to batch norm, for docs/masks.md.

    python docs/_draw_masks.py        # writes docs/pictures/masks.svg, and zh/masks.svg in Chinese

One channel of a padded batch as rows of coloured cells: the values, the values after plain batch
norm, the values after batch norm with ``where=``. Plain SVG, as in _draw_axes.py.
"""

from pathlib import Path

import numpy as np

import cnorm.functional as F

LENGTHS = (24, 14, 9, 5, 3)
CELL, LEFT, TOP, GAP = 15, 16, 46, 54
INK = "#37474f"


def colour(value):
    """Blue below 0, white at 0, red above; 2 and more is the whole colour."""
    share = min(abs(value) / 2, 1)
    full = (190, 60, 45) if value > 0 else (40, 110, 175)
    return "#" + "".join(f"{round(250 + (one - 250) * share):02x}" for one in full)


def panel(y, values, where, centre, title):
    parts = [
        f'<text x="{LEFT}" y="{y - 10}" font-size="13" fill="{INK}" '
        f'font-weight="bold">{title}</text>'
    ]
    for n, row in enumerate(values):
        for i, value in enumerate(row):
            fill = colour(value - centre) if where[n, 0, i] else "#eceff1"
            parts.append(
                f'<rect x="{LEFT + i * CELL}" y="{y + n * CELL}" width="{CELL}" height="{CELL}" '
                f'fill="{fill}" stroke="{INK}" stroke-width="0.4"/>'
            )
    return parts


# Titles of the three panels, of which each ends with the mean and the deviation of the data.
ENGLISH = (
    "A padded batch, one channel: the data have mean {:.2f}, deviation {:.2f}",
    "Plain batch norm counts the padding: the data have mean {:.2f}, deviation {:.2f}",
    "where=mask: the data have mean {:.2f}, deviation {:.2f}",
)
CHINESE = (
    "补零后的一批数据，一个通道：有效数据的均值 {:.2f}，标准差 {:.2f}",
    "直接做 BatchNorm，填充也计入统计：有效数据的均值 {:.2f}，标准差 {:.2f}",
    "where=mask：有效数据的均值 {:.2f}，标准差 {:.2f}",
)


def picture(titles):
    rng = np.random.default_rng(3)
    length = max(LENGTHS)
    where = np.arange(length) < np.reshape(LENGTHS, (-1, 1, 1))
    x = np.where(where, rng.normal(3, 1, where.shape), 0)
    plain = F.batch_norm(x, training=True)
    masked = F.batch_norm(x, training=True, where=where)
    parts, y = [], TOP
    for values, centre, title in zip((x, plain, masked), (3, 0, 0), titles, strict=True):
        data = values[where]
        parts += panel(y, values[:, 0], where, centre, title.format(data.mean(), data.std()))
        y += len(LENGTHS) * CELL + GAP
    width, height = 2 * LEFT + max(length * CELL, 560), y - GAP + 20
    text = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{text}\n</svg>\n'
    )


if __name__ == "__main__":
    folder = Path(__file__).parent / "pictures"
    (folder / "zh").mkdir(parents=True, exist_ok=True)
    for path, titles in ((folder / "masks.svg", ENGLISH), (folder / "zh" / "masks.svg", CHINESE)):
        path.write_text(picture(titles), encoding="utf-8")
        print(path)
