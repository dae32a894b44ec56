"""What the comparison says: a table for the terminal, one for the documentation, and a chart."""

import json
import math
from pathlib import Path

from implementations import PEERS

COLUMNS = ("cnorm", "cnorm out=", *PEERS, "copy")
COLOURS = dict(zip(PEERS, ("#d55e00", "#e69f00", "#0072b2", "#009e73", "#999999"), strict=True))


def read(paths):
    """Merge saved results; where a case was measured twice the later file counts."""
    files = [json.loads(Path(path).read_text()) for path in paths]
    records = {record["name"]: record for file in files for record in file["records"]}
    machine = files[0]["machine"]
    for file in files[1:]:
        machine["versions"].update(file["machine"]["versions"])
    return {"machine": machine, "records": list(records.values())}


def choose(results, statistic):
    """Let "median" or "minimum" be the time of a case."""
    for record in results["records"]:
        record["time"] = record[statistic]
    results["machine"]["statistic"] = statistic
    return results


def best_peer(record):
    """Return (name, seconds) of the fastest peer, or None."""
    times = {name: t for name, t in record["time"].items() if name in PEERS}
    return min(times.items(), key=lambda item: item[1]) if times else None


def ratios(record):
    """Return best peer / cnorm, cnorm / copy, and without / with `out=`; None where unknown."""
    time, best = record["time"], best_peer(record)
    cnorm, out, copy = (time.get(name) for name in ("cnorm", "cnorm out=", "copy"))
    return {
        "peer": best[1] / cnorm if cnorm and best else None,
        "copy": cnorm / copy if cnorm and copy and not record["case"]["overhead"] else None,
        "out": cnorm / out if cnorm and out else None,
    }


def geometric_mean(values):
    values = [value for value in values if value]
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else None


def summary(records):
    """Return the sentences below the table."""
    found = [(record, ratios(record)) for record in records]
    compared = [(record, r["peer"]) for record, r in found if r["peer"]]
    lines = [f"{len(compared)} cases compared."]
    mean = geometric_mean(ratio for _, ratio in compared)
    if mean:
        lines.append(f"Geometric mean of best peer / cnorm: {mean:.2f}.")
    mean = geometric_mean(r["copy"] for _, r in found)
    if mean:
        lines.append(f"Geometric mean of cnorm / copy, call overhead left out: {mean:.2f}.")
    mean = geometric_mean(r["out"] for _, r in found)
    if mean:
        worst, ratio = max(((a, r["out"]) for a, r in found if r["out"]), key=lambda pair: pair[1])
        lines.append(
            f"Without `out=` / with it: {mean:.2f}; at most {ratio:.2f} ({worst['name']})."
        )
    slower = sorted((ratio, record["name"]) for record, ratio in compared if ratio < 1)
    if slower:
        names = "; ".join(f"{name} ({ratio:.2f})" for ratio, name in slower)
        lines.append(f"Slower than the best peer in {len(slower)}: {names}.")
    elif compared:
        ratio, record = min((ratio, record["name"]) for record, ratio in compared)
        lines.append(f"Not slower than the best peer in any case; closest: {record} ({ratio:.2f}).")
    return lines


def stamp(machine):
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['threads']} threads, {machine['system']}, "
        f"Python {machine['python']}, {versions}; {machine['date']}, load {machine['load']:.1f}."
    )


def _time(seconds):
    if seconds is None:
        return "–"
    micro = seconds * 1e6
    return f"{micro:.2f}" if micro < 10 else f"{micro:.1f}" if micro < 100 else f"{micro:.0f}"


def _ratio(value):
    return "–" if value is None else f"{value:.2f}"


def rows(records):
    """Return the header and the cells of the table; times in microseconds."""
    used = [name for name in COLUMNS if any(name in record["time"] for record in records)]
    table = [["case", *used, "best peer / cnorm", "cnorm / copy"]]
    for record in records:
        r = ratios(record)
        times = [_time(record["time"].get(name)) for name in used]
        table.append([record["name"], *times, _ratio(r["peer"]), _ratio(r["copy"])])
    return table


def text(results):
    """The table for the terminal."""
    table = rows(results["records"])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for cells in table:
        case, *rest = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([cells[0].ljust(len(case)), *rest]))
    legend = f"Microseconds; the {results['machine']['statistic']} of all batches."
    return "\n".join([*lines, "", legend, *summary(results["records"]), stamp(results["machine"])])


def write(results, folder):
    """Write `benchmarks.md` and `benchmarks.svg` into a folder."""
    header, *body = rows(results["records"])
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Times are in microseconds, each implementation in a process of",
        f"its own, their rounds interleaved, the {results['machine']['statistic']} of all. `cnorm`",
        "returns a new array, `cnorm out=` writes into a given one; `copy` is a parallel copy of",
        "the same bytes (backward: an add of two arrays into a third), the least that memory",
        "allows. A dash: cannot run the case.",
        "",
        stamp(results["machine"]),
        "",
        *(f"- {line}" for line in summary(results["records"])),
        "",
        "![Times of the peers relative to cnorm](benchmarks.svg)",
        "",
        "| " + " | ".join(header) + " |",
        "|---|" + "--:|" * (len(header) - 1),
        *("| " + " | ".join(cells) + " |" for cells in body),
    ]
    (folder / "benchmarks.md").write_text("\n".join(lines) + "\n")
    chart(results, folder / "benchmarks.svg")


def chart(results, path):
    """Draw each peer's time as a multiple of cnorm's, a line for each headline case."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "cnorm"  # the same file from the same numbers
    import matplotlib.pyplot as plt

    shown = [r for r in results["records"] if r["case"]["headline"] and "cnorm" in r["time"]]
    shown = shown or [r for r in results["records"] if "cnorm" in r["time"]]
    if not shown:
        return
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.27 * len(shown)))
    for line, record in enumerate(reversed(shown)):
        time = record["time"]
        axes.axhline(line, color="#eeeeee", zorder=0)
        for name, colour in COLOURS.items():
            if name in time:
                axes.plot(time[name] / time["cnorm"], line, "o", color=colour, markersize=7)
        if "copy" in time:
            axes.plot(time["copy"] / time["cnorm"], line, "|", color="black", markersize=11)
    axes.axvline(1, color="black", linewidth=1.2)
    axes.text(1, len(shown) - 0.3, "cnorm", ha="center", va="bottom", weight="bold")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.set_yticks(range(len(shown)), [record["name"] for record in reversed(shown)])
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_xlabel("time as a multiple of cnorm's: right of the line is slower than cnorm")
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.tick_params(left=False)
    for name, colour in COLOURS.items():
        if any(name in record["time"] for record in shown):
            axes.plot([], [], "o", color=colour, label=name)
    axes.plot([], [], "|", color="black", markersize=11, label="parallel copy")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.9 / len(shown) - 0.05), ncols=6,
                frameon=False, handletextpad=0.2, columnspacing=1.2)  # fmt: skip
    machine = results["machine"]
    caption = f"{machine['processor']}, {machine['threads']} threads, {machine['date']}"
    axes.set_title(caption, fontsize=9, color="#666666", pad=22)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
