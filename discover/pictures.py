"""Draws a comparison: curves with bands for each task, and how the runs are distributed over all of them."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from discover import statistics, verdict
from discover.studies import Tuned
from discover.verdict import Results, Verdict

matplotlib.use("Agg")
from matplotlib import pyplot  # after the choice of a canvas that needs no screen

COLUMNS = 3
PROFILE_POINTS = 120


def draw(results: Results, found: Verdict) -> bytes:
    """A picture as PNG.

    A panel for each task: held-out loss over steps, geometric mean over fresh seeds, with its 95 % interval. The last
    panel: which share of runs ends within a factor of the baseline's mean loss, averaged over tasks, with a 95 %
    bootstrap band (Agarwal et al. 2021).
    """
    panels = len(results) + 1
    wide = min(COLUMNS, panels)
    high = math.ceil(panels / wide)
    figure, axes = pyplot.subplots(high, wide, figsize=(4.6 * wide, 3.5 * high), squeeze=False, layout="constrained")
    flat = list(axes.flat)
    for axis, (task, row) in zip(flat, results.items(), strict=False):
        _curves(axis, task, row)
    _profile(flat[len(results)], results, found)
    for axis in flat[panels:]:
        axis.set_visible(False)
    handles, labels = flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    pyplot.close(figure)
    return buffer.getvalue()


def _curves(axis: Any, task: str, row: Mapping[str, Sequence[Tuned]]) -> None:
    ends, start = [], 0.0
    for number, (name, tuned) in enumerate(row.items()):
        steps, logs = verdict.curve_steps(tuned), verdict.log_curves(tuned)
        bands = [statistics.mean_interval(verdict.units(logs[:, :, i])) for i in range(logs.shape[2])]
        middle, low, high = (np.exp([getattr(band, part) for band in bands]) for part in ("value", "low", "high"))
        color = f"C{number % 10}"
        axis.plot(steps, middle, label=name, color=color, linewidth=1.4)
        if np.isfinite(low).all() and np.isfinite(high).all():
            axis.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
        ends.append(float(middle[-1]))
        start = max(start, float(middle[0]))
    axis.set(title=task, xlabel="step", ylabel="held-out loss", yscale="log")
    axis.set_ylim(0.93 * min(ends), min(start, 6 * float(np.median(ends))))
    axis.grid(alpha=0.25, which="both")


def _profile(axis: Any, results: Results, found: Verdict) -> None:
    ratios: dict[str, list[Any]] = {}
    for row in results.values():
        middle = verdict.log_losses(row[found.baseline]).mean()
        for name, tuned in row.items():
            logs = verdict.log_losses(tuned) - middle
            ratios.setdefault(name, []).append(np.exp(logs if len(logs) > 1 else logs.T))
    together = np.concatenate([each.ravel() for rows in ratios.values() for each in rows])
    low, high = np.quantile(together, [0.01, 0.95])
    limits = np.geomspace(0.98 * low, min(1.02 * high, 5 * max(low, 1.0)), PROFILE_POINTS)
    for number, strata in enumerate(ratios.values()):
        rng = np.random.default_rng(0)
        share, below, above = statistics.score_profile(strata, limits, rng, resamples=300)
        axis.plot(limits, share, color=f"C{number % 10}", linewidth=1.4)
        axis.fill_between(limits, below, above, color=f"C{number % 10}", alpha=0.18, linewidth=0)
    axis.axvline(1.0, color="gray", linewidth=0.8, linestyle=":")
    axis.set(title="all tasks", xlabel=f"loss / mean loss of {found.baseline}", ylabel="share of runs at or below")
    axis.grid(alpha=0.25)
