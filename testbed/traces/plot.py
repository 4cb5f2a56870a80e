"""A picture of traces: rate over time with outages, the distribution of the rates, and their memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from testbed.errors import InputError
from testbed.traces.statistics import autocorrelation, window_rates_bps
from testbed.traces.trace import NS_PER_S, Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart with any colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MAX_LAG_S = 60


def plot_traces(traces: Sequence[Trace], labels: Sequence[str], path: str | Path) -> None:
    """Write a PNG (or SVG, PDF, by the name) of up to seven traces, one colour each."""
    if not 1 <= len(traces) <= len(COLOURS):
        raise InputError(f"a picture shows 1 to {len(COLOURS)} traces", value=len(traces))
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    top_bps = max(float(window_rates_bps(trace, NS_PER_S).max()) for trace in traces)
    unit, unit_name = (
        (1e9, "Gbit/s") if top_bps >= 2e9 else (1e6, "Mbit/s") if top_bps >= 2e5 else (1e3, "kbit/s")
    )
    figure = Figure(figsize=(11, 3.0 + 1.9 * len(traces) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(traces) + 1, 2, height_ratios=[1.9] * len(traces) + [2.6])
    longest_s, shortest_s = (pick(t.duration_ns for t in traces) / NS_PER_S for pick in (max, min))
    shared = longest_s <= 2 * shortest_s  # one time axis, unless that would leave some panels nearly empty
    for row, (trace, label, colour) in enumerate(zip(traces, labels, COLOURS, strict=False)):
        axes = figure.add_subplot(grid[row, :])
        _over_time(axes, trace, label, colour, unit, unit_name)
        axes.set_ylabel(unit_name)
        axes.set_xlim(0, longest_s if shared else trace.duration_ns / NS_PER_S)
        if row == len(traces) - 1:
            axes.set_xlabel("time [s]")
        elif shared:
            axes.tick_params(labelbottom=False)
    spread, memory = figure.add_subplot(grid[-1, 0]), figure.add_subplot(grid[-1, 1])
    for trace, label, colour in zip(traces, labels, COLOURS, strict=False):
        rates = np.sort(window_rates_bps(trace, NS_PER_S)) / unit
        share = np.arange(len(rates) + 1) / len(rates)
        spread.step(np.insert(rates, 0, rates[0]), share, where="post", color=colour, label=label)
        lags = min(MAX_LAG_S, len(rates) - 1)
        memory.plot(autocorrelation(window_rates_bps(trace, NS_PER_S), lags), color=colour, label=label)
    spread.set(xlabel=f"rate in 1 s windows [{unit_name}]", ylabel="share of windows", ylim=(0, 1.02))
    means = [trace.mean_rate_bps / unit for trace in traces]
    if max(means) > 20 * min(means) > 0:  # a linear axis would press the slow ones into a line
        spread.set_xscale("log")
        spread.set_xlim(left=min(means) / 50)
    else:
        spread.set_xlim(left=0)
    memory.axhline(np.exp(-1), color="0.6", linewidth=0.8, linestyle="--")
    memory.annotate(
        "1/e",
        (1, np.exp(-1)),
        xycoords=("axes fraction", "data"),
        xytext=(-3, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8,
        color="0.4",
    )
    memory.set(xlabel="lag [s]", ylabel="autocorrelation")
    memory.set_xlim(left=0)
    for axes in (spread, memory):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if len(traces) > 1:
        spread.legend(frameon=False, fontsize=8, loc="best")
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot be written: {error}", file=str(path), remedy="name a file that ends in .png"
        ) from None


def _over_time(axes: Axes, trace: Trace, label: str, colour: str, unit: float, unit_name: str) -> None:
    """100 ms rates as a pale line, 1 s rates as a strong one, outages of 100 ms and more shaded."""
    # very long traces: widen the fine windows so that a picture has at most 20,000 points
    fine_ns = max(NS_PER_S // 10, -(-trace.duration_ns // 20_000))
    coarse_ns = max(NS_PER_S, 10 * fine_ns)
    for window_ns, alpha, width in ((fine_ns, 0.35, 0.6), (coarse_ns, 1.0, 1.5)):
        rates = window_rates_bps(trace, window_ns) / unit
        edges = np.arange(len(rates) + 1) * (min(window_ns, trace.duration_ns) / NS_PER_S)
        axes.step(edges, np.append(rates, rates[-1]), where="post", color=colour, alpha=alpha, lw=width)
    fine = window_rates_bps(trace, fine_ns)
    borders = np.flatnonzero(np.diff(np.concatenate(([0], (fine == 0).astype(np.int8), [0]))))
    for begin, end in zip(borders[::2], borders[1::2], strict=True):
        axes.axvspan(
            begin * fine_ns / NS_PER_S, end * fine_ns / NS_PER_S, color="0.55", alpha=0.35, linewidth=0
        )
    axes.hlines(trace.mean_rate_bps / unit, 0, trace.duration_ns / NS_PER_S, "0.3", "--", linewidth=0.8)
    # the fine line may spike far above everything else; the axis follows its 99.5th percentile
    top = max(float(np.quantile(fine, 0.995)), float(window_rates_bps(trace, coarse_ns).max())) / unit
    axes.set_ylim(0, 1.08 * top)
    mean = f"mean {trace.mean_rate_bps / unit:.3g} {unit_name} (dashed)"
    windows = f"{coarse_ns / NS_PER_S:.3g} s (strong) and {fine_ns / 1e6:.3g} ms (pale) windows"
    axes.set_title(f"{label}   {mean}, {windows}, no bits (grey)", fontsize=9, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
