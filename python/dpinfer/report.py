"""One self-contained page from what ``dpinfer bench --json`` or ``dpinfer run --json`` measured.

``dpinfer report RESULTS.json -o REPORT.html`` runs this file by itself; it needs matplotlib and nothing of the package.
Every figure is an SVG in the page, drawn for a wide and for a narrow screen; its colours are variables of the page's
style sheet, so that it follows the reader's light or dark scheme. There is no script and nothing is loaded.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import os
import pathlib
import re
import sys
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

try:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
except ImportError:
    sys.stderr.write(
        f"dpinfer: the report is drawn with matplotlib, which {sys.executable} lacks: pip install 'matplotlib>=3.7' "
        "(pip install matplotlib), or name another Python in DPINFER_PYTHON\n"
    )
    sys.exit(2)

Json = Dict[str, Any]
WIDE, NARROW = 828, 335  # pixels; the narrow one fits a phone of 375
PARTS = [("compute", "computing"), ("load", "loading"), ("copy_in", "copying in"), ("copy_out", "copying out"), ("waiting", "waiting")]

# Colours that matplotlib writes and the page's style sheet gives a meaning.
INK, MUTED, GRID = "#010101", "#010102", "#010103"
SERIES = [f"#0102{i:02x}" for i in range(6)]
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", **{c: f"var(--s{i})" for i, c in enumerate(SERIES)}}
PART_COLOURS = dict(zip([p for p, _ in PARTS], [SERIES[0], SERIES[1], SERIES[2], SERIES[3], GRID]))

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #ffffff; --ink: #1c1d20; --muted: #5b5f66; --grid: #dcdee2;
  --s0: #2563a8; --s1: #d9822b; --s2: #3f9a6c; --s3: #a2559c; --s4: #b0413e; --s5: #6a7382; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --card: #1e2125; --ink: #e8e9eb; --muted: #a5abb3; --grid: #3b4047;
  --s0: #6aa9e9; --s1: #f0a55c; --s2: #6cc79a; --s3: #d08fca; --s4: #e57f7a; --s5: #9aa4b2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 900px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 4px; }
section { background: var(--card); border: 1px solid var(--grid); border-radius: 8px; padding: 16px; margin: 16px 0; }
p { margin: 4px 0 12px; color: var(--muted); max-width: 70ch; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 12px; margin: 16px 0; }
.figures div { background: var(--card); border: 1px solid var(--grid); border-radius: 8px; padding: 12px; }
.figures b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.figures span { color: var(--muted); font-size: .875rem; }
svg { display: block; width: 100%; height: auto; }
svg.narrow { display: none; }
@media (max-width: 700px) { svg.wide { display: none; } svg.narrow { display: block; } section { padding: 12px 3px; }
  section > :not(svg) { margin-left: 9px; margin-right: 9px; } main { padding: 16px 12px 32px; } }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.text { white-space: normal; overflow-wrap: anywhere; text-align: left; min-width: 12rem; }
summary { cursor: pointer; color: var(--muted); font-size: .875rem; padding: 4px 0; }
code { display: block; white-space: pre-wrap; overflow-wrap: anywhere; font: .875rem/1.5 ui-monospace, monospace; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 8px 0 0; font-size: .9375rem; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
"""


class Wrong(Exception):
    """The file is none of ours; says why."""


# ---- numbers as text -----------------------------------------------------------------------------------------------


def short(value: float, _: object = None) -> str:
    """1234567 as 1.23M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}" if isinstance(value, float) else str(value)


def quoted(words: Sequence[str]) -> str:
    return " ".join(w if re.fullmatch(r"[\w@%+=:,./-]+", w) else "'" + w.replace("'", "'\\''") + "'" for w in words)


# ---- figures -------------------------------------------------------------------------------------------------------

Draw = Callable[[Any, bool], None]


def style() -> Dict[str, Any]:
    return {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 12,
        "text.color": INK,
        "axes.edgecolor": GRID,
        "axes.labelcolor": MUTED,
        "axes.labelsize": 12,
        "xtick.color": GRID,
        "ytick.color": GRID,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
    }


def svg(name: str, draw: Draw, narrow: bool, height: float, label: str) -> str:
    """One drawing as an SVG element of the page."""
    with matplotlib.rc_context({**style(), "svg.hashsalt": f"{name}-{narrow}"}):
        figure = Figure(figsize=((NARROW if narrow else WIDE) / 72, height / 72), layout="constrained")
        draw(figure, narrow)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)  # groups, numbered in every figure alike; nothing refers to them
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", text)
    kind = "narrow" if narrow else "wide"
    return re.sub(r"<svg ", f'<svg class="{kind}" role="img" aria-label="{html.escape(label, True)}" ', text, count=1)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(shown(v))}</td>" for v in row) + "</tr>" for row in rows)
    heads = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{cells}</tbody></table></div>'


def section(title: str, text: str, name: str, draw: Draw, heights: Tuple[float, float], head: Sequence[str],
            rows: Sequence[Sequence[Any]]) -> str:
    figures = svg(name, draw, False, heights[0], title) + svg(name, draw, True, heights[1], title)
    numbers = f"<details><summary>The numbers</summary>{table(head, rows)}</details>"
    return f"<section><h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>{figures}{numbers}</section>"


def legend(figure: Any, handles: Sequence[Any], names: Sequence[str], narrow: bool) -> None:
    figure.legend(handles, names, loc="outside upper left", ncols=2 if narrow else min(len(names), 5), handlelength=1.2,
                  columnspacing=1.2, borderaxespad=0.2)


def bar_width(count: int) -> float:
    return 0.8 / max(count, 1)


# ---- bench ---------------------------------------------------------------------------------------------------------


def modes_of(rows: Sequence[Json]) -> List[str]:
    return list(dict.fromkeys(r["mode"] for r in rows))


def against_alone(data: Json) -> str:
    rows: List[Json] = data["rows"]
    alone = {a["batch_per_device"]: a for a in data["engine_alone"]}
    many = [r for r in rows if r["devices"] > 1] or rows
    batch = max(many, key=lambda r: r["rows_per_s"])["batch_per_device"]
    chosen = [r for r in rows if r["batch_per_device"] == batch]
    top = max((r["devices"] for r in chosen), default=1)
    ideal = alone.get(batch, {}).get("rows_per_s", 0.0)

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.add_subplot()
        names = [r["mode"] for r in chosen]
        values = [r["rows_per_s"] for r in chosen]
        goals = [ideal * r["devices"] / top for r in chosen]
        at = range(len(chosen))
        marks = axes.barh(at, goals, 0.62, color=GRID)
        bars = axes.barh(at, values, 0.34, color=SERIES[0])
        for i, (value, goal) in enumerate(zip(values, goals)):
            text = f"{short(value)}/s" + (f", {100 * value / goal:.0f} %" if goal else "")
            axes.text(max(value, goal) * 1.02, i, text, va="center", fontsize=11)
        axes.set_yticks(list(at), [f"{n}\n{r['devices']} device{'s' if r['devices'] > 1 else ''}" for n, r in zip(names, chosen)])
        axes.invert_yaxis()
        axes.set_xlim(0, max(values + goals) * (1.55 if narrow else 1.25))
        axes.grid(False)
        axes.xaxis.grid(True)
        axes.xaxis.set_major_locator(MaxNLocator(3 if narrow else 6, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(short))
        axes.set_xlabel("rows/s")
        legend(figure, [bars[0], marks[0]], ["measured", "engine alone"], narrow)

    head = ["mode", "devices", "rows/s", "engine alone rows/s", "speed-up", "efficiency", "95 % from", "to"]
    numbers = [[r["mode"], r["devices"], r["rows_per_s"], ideal * r["devices"] / top, r["speedup"], r["efficiency"],
                *r["efficiency_interval"]] for r in chosen]
    text = (f"Behind each bar is the engine alone, without dpinfer, on as many devices at once. {batch} rows per device, the "
            "batch size with the best rate.")
    height = 70 + 46.0 * len(chosen)
    return section("Modes against the engine alone", text, "scaling", draw, (height, height + 10), head, numbers)


def curve(data: Json) -> str:
    """From one device to all, against each device by itself, summed up; empty without `bench --scaling`."""
    points: List[Json] = data.get("scaling") or []
    if not points:
        return ""
    batch = max(points, key=lambda p: p["rows_per_s"])["batch_per_device"]
    points = [p for p in points if p["batch_per_device"] == batch]
    lines = [(m, sorted((p for p in points if p["mode"] == m), key=lambda p: p["devices"])) for m in modes_of(points)]
    most = max(p["devices"] for p in points)
    floor = min([0.9, *(p["efficiency"] for p in points), *(p["at_once_rows_per_s"] / p["ideal_rows_per_s"] for p in points)])
    x = [p["devices"] for p in lines[0][1]]
    ideal = [p["ideal_rows_per_s"] for p in lines[0][1]]
    at_once = [p["at_once_rows_per_s"] for p in lines[0][1]]

    def draw(figure: Any, narrow: bool) -> None:
        rates, shares_of = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        handles = []
        for i, (_, line) in enumerate(lines):
            of = {"marker": "os"[i % 2], "ms": 6 - 2 * i, "lw": 2, "color": SERIES[i], "zorder": 3 + i}
            handles += rates.plot([p["devices"] for p in line], [p["rows_per_s"] for p in line], **of)
            shares_of.plot([p["devices"] for p in line], [100 * p["efficiency"] for p in line], **of)
        handles += rates.plot([0, *x], [0, *ideal], "--", lw=1.5, color=INK, zorder=2)
        handles += rates.plot(x, at_once, ":", lw=2, color=SERIES[5], zorder=2)
        shares_of.plot([0, most], [100, 100], "--", lw=1.5, color=INK, zorder=2)
        shares_of.plot(x, [100 * a / b for a, b in zip(at_once, ideal)], ":", lw=2, color=SERIES[5], zorder=2)
        rates.set_ylim(bottom=0)
        rates.set_ylabel("rows/s")
        rates.yaxis.set_major_formatter(FuncFormatter(short))
        shares_of.set_ylim(10 * (int(10 * floor) - (floor < 0.9)) if floor > 0 else 0, None)
        shares_of.set_ylabel("% of ideal")
        shares_of.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        shares_of.set_xlim(0, most * 1.03)
        shares_of.xaxis.set_major_locator(MaxNLocator(min(most, 4 if narrow else 8), integer=True, steps=[1, 2, 4, 8, 10]))
        shares_of.set_xlabel("devices")
        legend(figure, handles, [*(m for m, _ in lines), "ideal", "engines alone at once"], narrow)

    text = (f"The first 1, 2, 4 ... devices of the list, {batch} rows per device. Ideal is each device's engine by itself, without "
            "dpinfer and with all others idle, summed up; the dotted line is what these engines give when they run at once, which "
            "is the hardware's part of what is missing.")
    numbers = [[p["mode"], p["devices"], p["rows_per_s"], p["at_once_rows_per_s"], p["ideal_rows_per_s"], p["efficiency"],
                *p["efficiency_interval"]] for _, line in lines for p in line]
    return section("Scaling against ideal", text, "curve", draw, (420, 420),
                   ["mode", "devices", "rows/s", "engines at once", "ideal rows/s", "efficiency", "95 % from", "to"], numbers)


def throughput(data: Json) -> str:
    rows: List[Json] = data["rows"]
    lines = [(m, [r for r in rows if r["mode"] == m]) for m in modes_of(rows)]
    batches = sorted({r["batch_per_device"] for r in rows})

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.add_subplot()
        handles = []
        for i, (mode, points) in enumerate(lines):
            x = [p["batch_per_device"] for p in points]
            handles += axes.plot(x, [p["rows_per_s"] for p in points], marker="o", ms=5, lw=2, color=SERIES[i])
        alone = sorted(data["engine_alone"], key=lambda a: a["batch_per_device"])
        handles += axes.plot([a["batch_per_device"] for a in alone], [a["rows_per_s"] for a in alone], "--", marker="o", ms=4,
                             lw=1.5, color=SERIES[5])
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, [str(b) for b in batches])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(short))
        axes.set_xlabel("rows per device")
        axes.set_ylabel("rows/s")
        legend(figure, handles, [m for m, _ in lines] + ["engine alone"], narrow)

    numbers = [[r["mode"], r["devices"], r["batch_per_device"], r["rows_per_s"], r["efficiency"], r["repeats"]] for r in rows]
    return section("Throughput by batch size", "Median of the repeats.", "throughput", draw, (320, 330),
                   ["mode", "devices", "batch", "rows/s", "efficiency", "repeats"], numbers)


def latency(data: Json) -> str:
    rows = [r for m in modes_of(data["rows"]) for r in data["rows"] if r["mode"] == m and r["p50_ms"] > 0]
    if not rows:
        return ""
    names = [f"{r['mode']}, {r['batch_per_device']}" for r in rows]
    return latency_bars(names, rows, "How long one batch takes, from its submission to its results, by mode and rows per device. "
                        "split keeps four batches in flight, so each waits for those before it.")


def latency_bars(names: Sequence[str], rows: Sequence[Json], text: str) -> str:
    keys = ("p50_ms", "p90_ms", "p99_ms")

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.add_subplot()
        handles = [axes.plot([r[k] for r in rows], range(len(rows)), mark, ms=size, color=SERIES[c], ls="none", zorder=z)[0]
                   for k, mark, c, size, z in zip(keys, "osD", (0, 1, 4), (5, 9, 7), (4, 3, 2))]
        for i, r in enumerate(rows):
            axes.plot([r["p50_ms"], r["p99_ms"]], [i, i], lw=2, color=GRID, zorder=1)
        axes.set_yticks(range(len(rows)), list(names))
        axes.invert_yaxis()
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(False)
        axes.xaxis.grid(True)
        axes.set_xlim(0, max(r["p99_ms"] for r in rows) * 1.06)
        axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8, steps=[1, 2, 5, 10]))
        axes.set_xlabel("milliseconds")
        legend(figure, handles, ["median", "90 %", "99 %"], narrow)

    height = 80 + 26.0 * len(rows)
    return section("Latency", text, "latency", draw, (height, height), ["", "median ms", "90 % ms", "99 % ms"],
                   [[n, *(r[k] for k in keys)] for n, r in zip(names, rows)])


def shares(title: str, text: str, names: Sequence[str], seconds: Sequence[Json]) -> str:
    """Bars of where time went, each the whole of one device's."""
    totals = [sum(s.get(p, 0.0) for p, _ in PARTS) or 1.0 for s in seconds]

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.add_subplot()
        handles = []
        left = [0.0] * len(seconds)
        for part, _ in PARTS:
            widths = [100 * s.get(part, 0.0) / t for s, t in zip(seconds, totals)]
            handles.append(axes.barh(range(len(seconds)), widths, 0.7, left=left, color=PART_COLOURS[part])[0])
            left = [a + b for a, b in zip(left, widths)]
        axes.set_yticks(range(len(names)), list(names))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.grid(False)
        axes.set_xlabel("% of the device's time")
        legend(figure, handles, [n for _, n in PARTS], narrow)

    height = 80 + 24.0 * len(names)
    return section(title, text, "shares", draw, (height, height + 40), ["", *(f"{n} s" for _, n in PARTS)],
                   [[n, *(s.get(p, 0.0) for p, _ in PARTS)] for n, s in zip(names, seconds)])


def bench_devices(data: Json) -> str:
    devices = data["backend"].get("devices", [])
    names, seconds = [], []
    batch = max(r["batch_per_device"] for r in data["rows"])
    for r in data["rows"]:
        for w, own in enumerate(r.get("device_seconds", [])):
            if r["batch_per_device"] == batch and w < 16:
                names.append(f"{r['mode']}, {devices[w] if w < len(devices) else w}")
                seconds.append(own)
    if not names:
        return ""
    return shares("Where the devices' time went", f"Of each device in each mode, at {batch} rows per device.", names, seconds)


# ---- run -----------------------------------------------------------------------------------------------------------


def steps(data: Json) -> Tuple[List[float], List[List[List[float]]]]:
    """Ends of the looks, and for each device what happened between them: rows and seconds of each kind."""
    line = data["timeline"]
    count = max((len(m["devices"]) for m in line), default=0)
    ends, out = [0.0], [[] for _ in range(count)]  # type: Tuple[List[float], List[List[List[float]]]]
    before: List[List[float]] = [[0.0] * 5 for _ in range(count)]
    for moment in line:
        if moment["s"] <= ends[-1]:
            continue
        ends.append(moment["s"])
        for w in range(count):
            now = moment["devices"][w] if w < len(moment["devices"]) else before[w]
            out[w].append([max(a - b, 0.0) for a, b in zip(now, before[w])])
            before[w] = now
    return ends, out


def rate_over_time(data: Json) -> str:
    ends, of = steps(data)
    if len(ends) < 3:
        return ""
    names = [d["device"] for d in data["devices"]]
    most = 5
    lengths = [b - a for a, b in zip(ends, ends[1:])]
    series = [[s[0] / length for s, length in zip(device, lengths)] for device in of]
    if len(series) > most:
        rest = [sum(column) for column in zip(*series[most - 1 :])]
        series, names = series[: most - 1] + [rest], names[: most - 1] + [f"{len(names) - most + 1} more"]

    def draw(figure: Any, narrow: bool) -> None:
        axes = figure.add_subplot()
        handles = []
        base = [0.0] * len(lengths)
        for i, one in enumerate(series):
            top = [a + b for a, b in zip(base, one)]
            handles.append(axes.fill_between(ends, base + base[-1:], top + top[-1:], step="post", color=SERIES[i], lw=0))
            base = top
        axes.set_xlim(0, ends[-1])
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(short))
        axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 10, steps=[1, 2, 5, 10]))
        axes.set_xlabel("seconds")
        axes.set_ylabel("rows/s")
        legend(figure, handles, names, narrow)

    numbers = [[end, *(one[i] for one in series)] for i, end in enumerate(ends[1:])]
    return section("Throughput over time", "Rows that were finished, by device, one on the other.", "rate", draw, (300, 310),
                   ["seconds", *names], numbers)


def time_of_devices(data: Json) -> str:
    ends, of = steps(data)
    if len(ends) < 3:
        return ""
    names, most = [d["device"] for d in data["devices"]], 8
    lengths = [b - a for a, b in zip(ends, ends[1:])]
    keys = ("load", "copy_in", "compute", "copy_out")  # as in the timeline, behind the rows
    order = [keys.index(p) + 1 for p, _ in PARTS if p != "waiting"]

    def draw(figure: Any, narrow: bool) -> None:
        rows = min(len(of), most)
        all_axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
        handles: List[Any] = []
        for w, axes in enumerate(all_axes):
            base = [0.0] * len(lengths)
            handles = []
            for part, index in zip((p for p, _ in PARTS), order):
                top = [min(b + 100 * s[index] / length, 100.0) for b, s, length in zip(base, of[w], lengths)]
                handles.append(axes.fill_between(ends, base + base[-1:], top + top[-1:], step="post", color=PART_COLOURS[part], lw=0))
                base = top
            whole = [100.0] * len(ends)
            handles.append(axes.fill_between(ends, base + base[-1:], whole, step="post", color=PART_COLOURS["waiting"], lw=0))
            axes.set_ylim(0, 100)
            axes.set_yticks([0, 100], ["0", "100 %"])
            axes.grid(False)
            axes.set_title(names[w], loc="left", fontsize=12, color=INK, pad=3)
        all_axes[-1].set_xlim(0, ends[-1])
        all_axes[-1].xaxis.set_major_locator(MaxNLocator(5 if narrow else 10, steps=[1, 2, 5, 10]))
        all_axes[-1].set_xlabel("seconds")
        legend(figure, handles, [n for _, n in PARTS], narrow)

    more = f" The first {most} of {len(of)} devices." if len(of) > most else ""
    text = "Of each device over the run; time is counted when a slice ends, so short stretches may be off by one slice." + more
    numbers = [[d["device"], d["rows"], d["slices"], d["stolen"], *(d[k] for k in ("load", "copy_in", "compute", "copy_out"))]
               for d in data["devices"]]
    height = 70 + 70.0 * min(len(of), most)
    return section("Where the devices' time went", text, "time", draw, (height, height + 30),
                   ["device", "rows", "slices", "stolen", "loading s", "copying in s", "computing s", "copying out s"], numbers)


def run_latency(data: Json) -> str:
    ms = data.get("slice_ms")
    if not ms:
        return ""
    return latency_bars(["slice"], [{f"{k}_ms": ms[k] for k in ("p50", "p90", "p99")}],
                        f"How long one slice of at most {data['session']['batch']} rows takes on its device, from claimed to delivered.")


def bad_rows(data: Json) -> str:
    rows = data.get("bad_rows", [])
    count = data.get("bad_row_count", len(rows))
    if not count:
        return ""
    cells = "".join(f'<tr><td>{r["row"]:,}</td><td class="text">{html.escape(r["reason"])}</td></tr>' for r in rows)
    more = f" The first {len(rows)} of them." if count > len(rows) else ""
    return (f"<section><h2>Bad rows</h2><p>{count:,} rows could not be computed; their outputs are NaN or 0.{more}</p>"
            f'<div class="scroll"><table><thead><tr><th>row</th><th>reason</th></tr></thead><tbody>{cells}</tbody></table></div></section>')


# ---- the page ------------------------------------------------------------------------------------------------------


def tiles(pairs: Sequence[Tuple[str, str]]) -> str:
    return '<div class="figures">' + "".join(f"<div><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>" for v, k in pairs) + "</div>"


def origin(data: Json) -> str:
    m = data.get("machine", {})
    facts = [("processor", m.get("processor")), ("cores", f"{m.get('cores')} ({m.get('cpus')} CPUs)"),
             ("quota", f"{m['quota_cpus']:.3g} CPUs" if m.get("quota_cpus") else None),
             ("memory", f"{m.get('memory_bytes', 0) / 2**30:.1f} GiB")]
    if "backend" in data:
        facts += [("backend", f"{data['backend'].get('name')} {data['backend'].get('version')}"),
                  ("devices", ", ".join(data["backend"].get("devices", [])))]
    else:
        workers = data["session"]["workers"]
        facts += [("backend", f"{workers[0]['backend']} {workers[0]['version']}" if workers else None),
                  ("devices", ", ".join(w["device"] for w in workers)),
                  ("engines", "bit-identical" if data["session"]["bit_identical"] else f"differ by {data['session']['tolerance']:.2g}")]
    items = "".join(f"<dt>{k}</dt><dd>{html.escape(str(v))}</dd>" for k, v in facts if v)
    return (f"<section><h2>Machine and command</h2><code>{html.escape(quoted(data.get('command', [])))}</code><dl>{items}</dl></section>")


def bench_page(data: Json) -> Tuple[List[Tuple[str, str]], List[str]]:
    best = max(data["rows"], key=lambda r: r["rows_per_s"])
    top = [(short(best["rows_per_s"]), "rows/s, the best"), (f"{100 * best['efficiency']:.0f} %", "of the engine alone"),
           (f"{best['mode']}", f"mode, {best['batch_per_device']} rows per device"), (str(best["devices"]), "devices")]
    return top, [curve(data), against_alone(data), throughput(data), latency(data), bench_devices(data)]


def run_page(data: Json) -> Tuple[List[Tuple[str, str]], List[str]]:
    top = [(short(data["rows_per_s"]), "rows/s"), (f"{data['rows']:,}", "rows"), (f"{data['seconds']:,.4g} s", "time")]
    if data.get("resumed_rows"):
        top.append((f"{data['resumed_rows']:,}", "rows of an earlier run"))
    if "accuracy" in data:
        top.append((f"{100 * data['accuracy']:.2f} %", "accuracy"))
    if data.get("deaths"):
        top.append((f"{data['deaths']:,}", f"deaths of workers, {data['replayed_slices']:,} slices replayed"))
    top.append((f"{data.get('bad_row_count', 0):,}", "bad rows"))
    return top, [rate_over_time(data), time_of_devices(data), run_latency(data), bad_rows(data)]


def page(data: Json) -> str:
    """The whole page. Wrong: the results are not what bench or run writes."""
    kind = "bench" if "engine_alone" in data else "run"
    try:
        if kind == "bench" and not data["rows"]:
            raise Wrong("it has no measurements")
        top, sections = bench_page(data) if kind == "bench" else run_page(data)
        model = os.path.basename(str(data["model"]))
        body = f"<h1>{html.escape(model)}</h1><p>dpinfer {kind}</p>" + tiles(top) + "".join(sections) + origin(data)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise Wrong(f"it is not what `dpinfer bench --json` or `dpinfer run --json` writes ({type(error).__name__}: {error})") from error
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, '
            f'initial-scale=1"><link rel="icon" href="data:,"><title>{html.escape(model)}: dpinfer {kind}</title><style>{STYLE}</style></head>'
            f"<body><main>{body}</main></body></html>\n")


def read(path: str) -> Json:
    try:
        data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise Wrong(error.strerror or str(error)) from error
    except ValueError as error:
        raise Wrong(f"it is no JSON ({error})") from error
    if not isinstance(data, dict):
        raise Wrong("it is no JSON object")
    return data


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="dpinfer report")
    parser.add_argument("results")
    parser.add_argument("-o", "--output", required=True)
    given = parser.parse_args(arguments)
    try:
        text = page(read(given.results))
    except Wrong as why:
        print(f"dpinfer: {given.results} cannot be shown: {why}", file=sys.stderr)
        return 2
    part = given.output + ".part"
    try:
        pathlib.Path(part).write_text(text, encoding="utf-8")
        os.replace(part, given.output)
    except OSError as error:
        pathlib.Path(part).unlink(missing_ok=True)
        print(f"dpinfer: cannot write {given.output}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
