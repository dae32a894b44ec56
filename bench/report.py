"""What the comparison says: a table for the terminal, one for the documentation, and a chart."""

import json
import math
import statistics
from pathlib import Path

from implementations import PEERS

COLUMNS = ("cnorm", "cnorm out=", *PEERS, "copy")
COLOURS = dict(zip(PEERS, ("#d55e00", "#e69f00", "#0072b2", "#009e73", "#999999"), strict=True))


def read(paths):
    """Put the saved results of several runs together, a case of all of them to a record."""
    files = [json.loads(Path(path).read_text()) for path in paths]
    machine, records = files[0]["machine"], {}
    for file in files:
        machine["versions"].update(file["machine"]["versions"])
        for run in file["records"]:
            record = records.setdefault(run["name"], {"name": run["name"], "case": run["case"]})
            record.setdefault("runs", []).append(run)
    machine["runs"] = len(files)
    return {"machine": machine, "records": list(records.values())}


def choose(results, statistic):
    """Let "median" or "minimum" be the time of a run; of several runs the median is shown."""
    for record in results["records"]:
        record["times"] = [run[statistic] for run in record.get("runs", [record])]
        names = {name for times in record["times"] for name in times}
        record["time"] = {
            name: statistics.median(times[name] for times in record["times"] if name in times)
            for name in names
        }
    results["machine"]["statistic"] = statistic
    return results


def ratio(record, name, other):
    """Return name / other, the median of the runs: within one the machine is the same for both."""
    found = [t[name] / t[other] for t in record["times"] if name in t and other in t]
    return statistics.median(found) if found else None


def ratios(record):
    """Return best peer / cnorm, cnorm / copy, and without / with `out=`; None where unknown."""
    peers = [ratio(record, peer, "cnorm") for peer in PEERS]
    return {
        "peer": min((r for r in peers if r), default=None),
        "copy": None if record["case"]["overhead"] else ratio(record, "cnorm", "copy"),
        "out": ratio(record, "cnorm", "cnorm out="),
    }


def geometric_mean(values):
    values = [value for value in values if value]
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else None


def summary(records):
    """Return the sentences below the table."""
    found = [(record, ratios(record)) for record in records]
    compared = [(record, r["peer"]) for record, r in found if r["peer"]]
    lines = [f"{len(compared)} cases compared."]
    mean = geometric_mean(r for _, r in compared)
    if mean:
        lines.append(f"Geometric mean of best peer / cnorm: {mean:.2f}.")
    mean = geometric_mean(r["copy"] for _, r in found)
    if mean:
        lines.append(f"Geometric mean of cnorm / copy, call overhead left out: {mean:.2f}.")
    mean = geometric_mean(r["out"] for _, r in found)
    if mean:
        worst, name = max((r["out"], record["name"]) for record, r in found if r["out"])
        lines.append(f"Without `out=` / with it: {mean:.2f}; at most {worst:.2f} ({name}).")
    slower = sorted((r, record["name"]) for record, r in compared if r < 1)
    if slower:
        names = "; ".join(f"{name} ({r:.2f})" for r, name in slower)
        lines.append(f"Slower than the best peer in {len(slower)}: {names}.")
    elif compared:
        closest, name = min((r, record["name"]) for record, r in compared)
        lines.append(f"Not slower than the best peer in any case; closest: {name} ({closest:.2f}).")
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


def what(machine):
    """Say which of the times counts."""
    batches = f"the {machine['statistic']} of all batches"
    runs = machine.get("runs", 1)
    return (
        batches if runs == 1 else f"{batches} of a run, times and ratios the median of {runs} runs"
    )


def text(results):
    """The table for the terminal."""
    table = rows(results["records"])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for cells in table:
        case, *rest = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([cells[0].ljust(len(case)), *rest]))
    legend = f"Microseconds; {what(results['machine'])}."
    return "\n".join([*lines, "", legend, *summary(results["records"]), stamp(results["machine"])])


def write(results, folder):
    """Write `benchmarks.md` and `benchmarks.svg` into a folder."""
    header, *body = rows(results["records"])
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Times are in microseconds, each implementation in a process of",
        f"its own, their rounds interleaved; {what(results['machine'])}.",
        "`cnorm` returns a new array, `cnorm out=` writes into a given one; `copy` is a parallel",
        "copy of the same bytes (backward: an add of two arrays into a third), the least that",
        "memory allows. A dash: not measured, or it cannot run the case.",
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
