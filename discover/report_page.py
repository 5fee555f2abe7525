"""A run as one HTML page that needs nothing else: no network, no script, no file beside it."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import dsl
from discover.console import by_count, one_line, resemblance
from discover.console import fitness as fitness_in_words
from discover.durations import format_duration
from discover.front import costs
from discover.length import length
from discover.records import OF_WORKERS, Ranked
from discover.report_data import Moment, Report, curve_of
from discover.report_svg import Series, bars, plot
from discover.runs import CERTIFICATE, PROMOTION, READABLE, program_of
from dsl import properties
from dsl.latex import latex
from dsl.program import Program, RuleError

MOST_DOTS = 1500
"""Of a kind in a plot; more are thinned out evenly."""

MOST_LINEAGE = 60
"""Steps of a lineage that are shown; of a longer one the first and the last."""

STYLE = """
:root { color-scheme: light dark; --fg: #1c1c1c; --bg: #fff; --dim: #666; --line: #ddd; --box: #f6f6f4;
  --t0: #1f6fb4; --t1: #c8791b; --t2: #2f8f4e; --t3: #a2399b; }
@media (prefers-color-scheme: dark) { :root { --fg: #e6e6e6; --bg: #161616; --dim: #9a9a9a; --line: #3a3a3a;
  --box: #222; --t0: #6db3ee; --t1: #eeaa55; --t2: #6cc98a; --t3: #dd88d6; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
pre { font: 13px/1.45 ui-monospace, monospace; background: var(--box); padding: .6rem .8rem; overflow-x: auto;
  white-space: pre-wrap; }
.dim, figcaption, .none { color: var(--dim); }
.none { font-style: italic; }
figure { margin: .6rem 0 1.2rem; }
svg { width: 100%; height: auto; max-width: 46rem; }
svg text { font-size: 12px; fill: var(--dim); }
.grid { stroke: var(--line); }
.zero { stroke: var(--dim); stroke-dasharray: 4 3; }
.line { fill: none; stroke-width: 1.8; }
.band { opacity: .18; stroke: none; }
.dots { opacity: .5; }
.bar { fill: var(--t0); }
.legend { margin: .2rem 0; }
.key { margin-right: 1.2rem; }
.key i { display: inline-block; width: .8em; height: .8em; margin-right: .35em; }
""" + "".join(
    f".line.tone{tone} {{ stroke: var(--t{tone}); }} .band.tone{tone}, .dots.tone{tone} {{ fill: var(--t{tone}); }}"
    f" i.tone{tone} {{ background: var(--t{tone}); }}\n"
    for tone in range(4)
)


def page(report: Report) -> str:
    """The whole page."""
    name = report.manifest.run
    sections = (
        ("In short", _short(report)),
        ("Leaderboard", _leaderboard(report)),
        ("Pareto front", _front(report)),
        ("Funnel", _funnel(report)),
        ("Fitness", _fitness(report)),
        ("Lineage of the best", _lineage(report)),
        ("Where the time went", _time(report)),
        ("On tasks that the search did not see", _promotion(report)),
        ("Certificate", _certificate(report)),
        ("Events", _events(report)),
        ("Configuration", _configuration(report)),
    )
    body = "".join(f"<section><h2>{title}</h2>{''.join(parts)}</section>\n" for title, parts in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(name)}</h1>\n{body}</body></html>\n"
    )


# Sections -----------------------------------------------------------------------------------------------------------


def _short(report: Report) -> Iterator[str]:
    asked, totals = report.manifest.configuration, report.totals
    best = report.leaderboard[0] if report.leaderboard else None
    head = "nothing was trained yet" if best is None else f"{fitness_in_words(best)}: {one_line(best.candidate.text)}"
    yield _table(
        (),
        [
            ("space", f"{asked.space.name}: {asked.space.description}"),
            ("state", f"{report.state}, {totals.generations} generations, {format_duration(totals.elapsed)}"),
            ("made", f"{report.manifest.created}, by {shlex.join(report.manifest.command) or 'a program'}"),
            ("algorithm", f"{asked.algorithm}, seed {asked.seed}"),
            ("trained", f"{totals.trained:,} of {totals.proposed:,} proposed, {totals.model_steps:,} model steps"),
            ("best", head),
        ],
    )


def _leaderboard(report: Report) -> Iterator[str]:
    if not report.leaderboard:
        yield _none("nothing was trained yet")
        return
    rows = []
    for ranked in report.leaderboard:
        facts = ranked.candidate.properties
        program = dsl.parse(ranked.candidate.text)
        rows.append(
            (
                str(ranked.rank),
                fitness_in_words(ranked),
                f"{facts.get('state_bytes', '?')}",
                str(length(program)),
                resemblance(program),
                one_line(program, 160),
            )
        )
    yield _table(("rank", "fitness", "bytes", "length", "nearest known rule", "rule"), rows)
    yield (
        '<p class="dim">fitness: mean log(loss of tuned AdamW / loss) on fresh instances, ± its standard error (how'
        " many of them); above 0 is better. bytes: of state a parameter. length: in statements of one operator.</p>"
    )
    for ranked in report.leaderboard[:3]:
        yield from _rule(ranked, report)
    if report.by_task:
        yield "<h3>The best, task by task</h3>"
        yield _table(("task", "mean score", "standard error", "fresh instances"), _task_rows(report.by_task))


def _front(report: Report) -> Iterator[str]:
    if not report.front:
        yield _none("nothing was trained yet")
        return
    rows = []
    for ranked in report.front:
        program = dsl.parse(ranked.candidate.text)
        state, passes = costs(ranked)
        words = (fitness_in_words(ranked), f"{state:g}", f"{passes:g}", str(ranked.rank))
        rows.append((*words, resemblance(program), one_line(program, 160)))
    yield _table(("fitness", "bytes", "passes", "rank", "nearest known rule", "rule"), rows)
    yield (
        '<p class="dim">No confirmed rule beats these in fitness, bytes of state and passes over the parameter at once.'
        " Those marked as not confirmed would join them if a fresh score came out as their own did.</p>"
    )
    for place, name in enumerate(("bytes of state a parameter", "passes over the parameter a step")):
        drawn = [
            Series(sorted((costs(each)[place], each.fitness or 0.0) for each in own), words, "places", tone=tone)
            for tone, words in enumerate(("confirmed", "not confirmed"))
            if (own := [each for each in report.front if (each.confirmation is None) == bool(tone)])
        ]
        title = f"The front: fitness against {name}"
        yield _figure(plot(drawn, name, "fitness", title, zero=True), f"{title}.")


def _rule(ranked: Ranked, report: Report) -> Iterator[str]:
    program = program_of(ranked, report.manifest.run)
    yield f"<h3>Rank {ranked.rank}</h3><pre>{escape(dsl.format(program))}</pre>"
    yield from _folded("As a formula, in LaTeX", f"<pre>{escape(_formula(program))}</pre>")
    facts = properties.of(program)
    rows = [(name, f"{getattr(facts, name)}") for name in type(facts).__slots__]
    yield from _folded("Properties", _table((), rows))


def _formula(program: Program) -> str:
    try:
        return latex(program)
    except RuleError as error:
        return f"cannot be written as a formula: {error}"


def _task_rows(by_task: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, ...]]:
    for task, scores in by_task.items():
        mean = math.fsum(scores) / len(scores)
        error = ""
        if len(scores) > 1:
            square = math.fsum((score - mean) ** 2 for score in scores) / (len(scores) - 1)
            error = f"{math.sqrt(square / len(scores)):.3f}"
        yield task, f"{mean:+.3f}", error, str(len(scores))


def _funnel(report: Report) -> Iterator[str]:
    totals = report.totals
    if not totals.proposed:
        yield _none("nothing was proposed yet")
        return
    rows = [("proposed", totals.proposed)]
    rows += [(f"rejected: {reason}", count) for reason, count in by_count(totals.rejected)]
    rows += [("duplicates", totals.duplicates), ("trained", totals.trained), ("distinct", totals.distinct)]
    rows += [(f"trained on rung {rung} or above", count) for rung, count in enumerate(report.rungs) if rung]
    rows += [("confirmed", report.confirmed)]
    rows += [(status, n) for status, n in report.statuses.items() if status not in ("trained", "duplicate")]
    shown = [(name, float(count), f"{count:,} ({count / totals.proposed:.1%})") for name, count in rows]
    yield _figure(bars(shown, "funnel of proposals"), "Shares are of all proposals.")


def _fitness(report: Report) -> Iterator[str]:
    floor = _floor([fitness for points in report.dots.values() for _, fitness in points])
    dots = [
        Series(
            _thinned([dot for dot in points if dot[1] >= floor]), f"trained to rung {rung}", "dots", tone=2 + rung % 2
        )
        for rung, points in report.dots.items()
    ]
    leaders = [moment for moment in report.moments if moment.fitness is not None]

    def lines(at: str) -> list[Series]:
        own = [(getattr(m, at), m.seen) for m in report.moments if m.seen is not None]
        band = [_band(moment) for moment in leaders]
        confirmed = [(getattr(m, at), m.fitness) for m in leaders if m.fitness is not None]
        return [
            Series(own, "the best that the search saw, not confirmed", "steps", tone=1),
            Series(confirmed, "leader on fresh instances, ± 2 standard errors", "steps", band, tone=0),
        ]

    words = (
        "Dots are candidates as the search scored them, the lowest twentieth left out. The leader's mean is over"
        " instances that nothing was chosen by, but for the choice among those confirmed. 0 is tuned AdamW."
    )
    drawn = plot([*dots, *lines("proposed")], "proposals", "fitness", "fitness over proposals", zero=True)
    yield _figure(drawn, words)
    drawn = plot(lines("model_steps"), "model steps", "fitness", "fitness over model steps", zero=True)
    yield _figure(drawn, "The same over compute: steps of one model.")


def _band(moment: Moment) -> tuple[float, float]:
    if moment.fitness is None or moment.error is None:
        return math.nan, math.nan
    return moment.fitness - 2 * moment.error, moment.fitness + 2 * moment.error


def _floor(values: Sequence[float]) -> float:
    """Below it lies a twentieth."""
    return sorted(values)[len(values) // 20] if values else 0.0


def _thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[float, float]]:
    step = max(1, math.ceil(len(points) / MOST_DOTS))
    return points[::step]


def _lineage(report: Report) -> Iterator[str]:
    line = report.lineage
    if not line:
        yield _none("nothing was trained yet")
        return
    yield f'<p class="dim">{len(line)} programs from the first ancestor to the best, each made from the one above.</p>'
    rows = [
        (str(c.id), str(c.generation), "none" if c.fitness is None else f"{c.fitness:+.3f}", c.origin, _line(c.text))
        for c in line
    ]
    if len(rows) > MOST_LINEAGE:
        half = MOST_LINEAGE // 2
        left_out = len(rows) - 2 * half
        rows = [*rows[:half], ("...", "", "", f"{left_out} left out", ""), *rows[-half:]]
    yield _table(("candidate", "generation", "fitness, unconfirmed", "change", "rule"), rows)


def _line(text: str) -> str:
    return one_line(text, 120)


def _time(report: Report) -> Iterator[str]:
    seconds = report.totals.seconds
    if not any(seconds.values()):
        yield _none("no time was taken yet")
        return
    elapsed = report.totals.elapsed
    driver = [(phase, s) for phase, s in by_seconds(seconds) if phase not in OF_WORKERS]
    workers = [(f"workers: {phase}", s) for phase, s in by_seconds(seconds) if phase in OF_WORKERS]
    rows = [(name, s, f"{format_duration(s)} ({s / elapsed:.0%})" if elapsed else "") for name, s in driver]
    rows += [(name, s, format_duration(s)) for name, s in workers]
    words = f"The driver's phases add up to {format_duration(elapsed)}; the workers' time is theirs, several at once."
    yield _figure(bars(rows, "where the time went"), words)
    steps = [(m.seconds, float(m.model_steps)) for m in report.moments]
    drawn = plot([Series(steps, tone=0)], "seconds", "model steps", "model steps over seconds")
    yield _figure(drawn, "Model steps over the time of searching.")


def by_seconds(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda item: -item[1])


def _promotion(report: Report) -> Iterator[str]:
    found = report.extras.get(PROMOTION)
    if found is None:
        yield _none("not promoted yet: 'discover promote' trains the leaders on select tasks, and draws this curve")
        return
    if curve := curve_of(found):
        points = [(float(row["generation"]), _float(row["score"])) for row in curve]
        errors = [_float(row.get("error")) for row in curve]
        band = [(y - 2 * e, y + 2 * e) for (_, y), e in zip(points, errors, strict=True)]
        own = [(float(row["generation"]), _float(row.get("fitness"))) for row in curve]
        drawn = [
            Series(own, "fitness on search tasks", "line", tone=1),
            Series(points, "score on select tasks, ± 2 standard errors", "line", band, tone=0),
        ]
        words = (
            "The meta-overfitting curve: each candidate that led the search, on its tasks and on others. Where the one"
            " rises and the other does not, the search is fitting its own tasks."
        )
        yield _figure(plot(drawn, "generation from which it led", "score", "meta-overfitting curve", zero=True), words)
    yield from _folded(f"All of {PROMOTION}", f"<pre>{escape(json.dumps(found, indent=1))}</pre>")


def _certificate(report: Report) -> Iterator[str]:
    found = report.extras.get(CERTIFICATE)
    if found is None:
        yield _none("none yet")
        return
    if isinstance(readable := report.extras.get(READABLE), str):
        yield f"<pre>{escape(readable)}</pre>"
    elif isinstance(found, dict):
        yield _table((), [(key, _words(value)) for key, value in found.items() if not isinstance(value, dict | list)])
    yield from _folded(f"All of {CERTIFICATE}", f"<pre>{escape(json.dumps(found, indent=1))}</pre>")


def _events(report: Report) -> Iterator[str]:
    if not report.incidents:
        yield _none("nothing befell the workers or the driver")
        return
    rows = [
        (each.at, each.kind, "" if each.generation is None else str(each.generation), each.text)
        for each in report.incidents
    ]
    yield _table(("when", "what", "generation", ""), rows)


def _configuration(report: Report) -> Iterator[str]:
    manifest, asked = report.manifest, report.manifest.configuration
    where = "all that the cluster has room for" if asked.workers is None else str(asked.workers)
    compiled = [task for task, start in asked.compiled_from.items() if start is not None]
    rows = [
        ("folder", str(report.folder)),
        ("budget", " and ".join(asked.budget.words()) or "no limit"),
        ("workers", where),
        ("compiled gradients", ", ".join(compiled) or "none"),
        ("native rules", "yes" if asked.native else "no"),
        ("versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
        ("machine", ", ".join(f"{name} {value}" for name, value in manifest.host.items())),
    ]
    yield _table((), rows)
    yield from _folded("The search space, every key", f"<pre>{escape(json.dumps(asked.space.plain(), indent=1))}</pre>")
    ancestors = "".join(f"<pre>{escape(text)}</pre>" for text in asked.ancestors)
    yield from _folded("Where it starts", ancestors)


# Pieces -------------------------------------------------------------------------------------------------------------


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Without columns, the first cell of each row is its heading."""
    head = f"<thead><tr>{''.join(f'<th>{escape(each)}</th>' for each in columns)}</tr></thead>" if columns else ""
    lines = []
    for row in rows:
        cells = [f"<td>{escape(cell)}</td>" for cell in row]
        if not columns:
            cells[0] = f'<th scope="row">{escape(row[0])}</th>'
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{head}<tbody>{''.join(lines)}</tbody></table>"


def _figure(drawing: str, words: str) -> str:
    return f"<figure>{drawing}<figcaption>{escape(words)}</figcaption></figure>"


def _folded(title: str, body: str) -> Iterator[str]:
    yield f"<details><summary>{escape(title)}</summary>{body}</details>"


def _none(words: str) -> str:
    return f'<p class="none">{escape(words)}</p>'


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _words(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
