"""The certificate of a promotion: all that is needed to check it, in numbers and in words, whatever came of it.

It is plain data, sealed with a digest: contests with every run on a fresh seed, rules as text, and statistics that
anyone can compute from those runs again (`statistics_of`); `discover.verify` does that, and trains runs again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from discover import plain, sets, statistics, verdict
from discover.contest import Contest, Results, differences, lead, wins
from discover.studies import tuning_seeds
from discover.verdict import log_losses, percent

FORMAT = 5
"""Version of certificate.json."""

FACTORS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0, 1.02, 1.05, 1.1, 1.25, 1.5, 2.0)
"""Of the performance profile: loss over the geometric mean of the first baseline's on the task."""

WIDE = 10.0
"""Best learning rates of a contender's tunings on a task that lie further apart than by this factor are named."""

RESAMPLES = 1000


def seal(data: Mapping[str, Any]) -> dict[str, Any]:
    """The certificate with its digest."""
    return {**data, "sha256": digest(data)}


def digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of all but the digest itself, whatever the order of keys."""
    text = json.dumps({key: value for key, value in data.items() if key != "sha256"}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


# Statistics -----------------------------------------------------------------------------------------------------------


def statistics_of(contest: Contest) -> dict[str, Any]:
    """What a contest shows; the same for the same runs."""
    return dict(
        plain.ready(
            {
                "error_rate": contest.terms.error_rate,
                "p": contest.p,
                "adjusted": contest.adjusted,
                "passed": list(contest.passed),
                "versus": {
                    name: {known: _versus(contest, name, known) for known in contest.known}
                    for name in contest.candidates
                },
                "profile": _profile(contest),
                "model_steps": contest.model_steps,
            }
        )
    )


def _versus(contest: Contest, name: str, baseline: str) -> dict[str, Any]:
    """A candidate against a baseline, over the tunings that both have."""
    results: Results = {}
    for task, row in contest.results.items():
        count = min(len(row[name]), len(row[baseline]))
        results[task] = {each: list(row[each][:count]) for each in (name, baseline)}
    found = verdict.judge(results, baseline, np.random.default_rng(0), resamples=RESAMPLES)
    won = wins(contest.results, name, baseline)
    cells = {task: {each: asdict(cell) for each, cell in row.items()} for task, row in found.cells.items()}
    return {
        "tunings": len(won),
        "won": sum(each == 1.0 for each in won),
        "lost": sum(each == 0.0 for each in won),
        "p": contest.p_against(name, baseline),
        "win_rate": asdict(statistics.win_rate(won)[-1]),
        "lead": lead(contest.results, name, baseline),
        "difference": float(differences(contest.results, name, baseline).mean()),
        "overall": asdict(found.overall[name]),
        "cells": cells,
    }


def _profile(contest: Contest) -> dict[str, Any]:
    """For each contender the share of runs within each factor of the baseline's mean loss, with its band."""
    reference = contest.baselines[0]
    rows: dict[str, Any] = {"factors": list(FACTORS)}
    for name in (*contest.known, *contest.candidates):
        strata = [np.exp(log_losses(row[name]) - log_losses(row[reference]).mean()) for row in contest.results.values()]
        found = statistics.score_profile(strata, FACTORS, np.random.default_rng(0), resamples=RESAMPLES)
        rows[name] = [each.tolist() for each in found]
    return rows


# Verdict --------------------------------------------------------------------------------------------------------------


def outcome(contests: Sequence[Contest]) -> str:
    """ "better", "not shown" (the final tasks were asked, and did not show it) or "nothing passed"."""
    last = contests[-1]
    if last.terms.name != "final":
        return "nothing passed"
    return "better" if last.passed else "not shown"


def statement(data: Mapping[str, Any]) -> str:
    """The verdict in words, from the certificate's own numbers."""
    contests = [Contest.of(each) for each in data["contests"]]
    if data["outcome"] == "nothing passed":
        last = contests[-1]
        if not data["candidates"]:
            return "Every candidate is a baseline but for constants, which are tuned for both: nothing was promoted."
        return (
            f"None of {len(data['candidates'])} candidates was shown to be better than {_all(last.baselines)} at"
            f" {last.terms.name} (error rate {last.terms.error_rate:g}); the final tasks were not touched."
            " This is what was tried."
        )
    final = contests[-1]
    (name,) = final.candidates
    rate = f"error rate {final.terms.error_rate:g}"
    versus = data["statistics"][-1]["versus"][name]
    size = "; ".join(_size(each, versus[each]) for each in final.baselines)
    beside = f" Beside them: {'; '.join(_size(each, versus[each]) for each in final.beside)}." if final.beside else ""
    count = len(final.terms.tasks)
    where = f"on {count} task{'s' if count > 1 else ''} that neither search nor selection saw"
    if same := sets.shared(final.terms.tasks, data.get("seen", ()), data["data"], data.get("networks", {})):
        where += f" ({same})"
    if data["outcome"] == "better":
        return f"{name} is better than {_all(final.baselines)} {where} ({rate}): {size}.{beside}"
    return f"{name} was not shown to be better than {_all(final.baselines)} {where} ({rate}): {size}.{beside}"


def _size(baseline: str, own: Mapping[str, Any]) -> str:
    found = {key: percent(own["overall"]["difference"][key]) for key in ("value", "low", "high")}
    return (
        f"{found['value']} loss ({found['low']} to {found['high']}) against {baseline}, ahead in {own['won']} of"
        f" {own['tunings']} tunings"
    )


def _all(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"each of {', '.join(names)}"


# For people -----------------------------------------------------------------------------------------------------------


def markdown(data: Mapping[str, Any]) -> str:
    """certificate.md."""
    return "\n".join(_lines(data)) + "\n"


def _lines(data: Mapping[str, Any]) -> Iterator[str]:
    yield f"# Certificate: {data['outcome']}"
    yield ""
    yield data["statement"]
    yield ""
    rule = data["rule"]
    if rule is not None:
        yield f"The rule ({rule['identity']}):"
        yield from ("", "```", *rule["text"].rstrip().splitlines(), "```", "")
    yield "## Where it comes from"
    yield ""
    yield from _provenance(data)
    yield from ("", "## Contests", "")
    yield from _contests(data)
    yield from ("", f"## In detail: {data['contests'][-1]['terms']['name']}", "")
    yield from _detail(data)
    if data["simplification"]:
        yield from ("", "## Simplification", "", "| change | loss | p | kept |", "| --- | --- | --- | --- |")
        for trial in data["simplification"]:
            size = "not trained" if trial["difference"] is None else percent(trial["difference"])
            yield f"| `{trial['change']}` | {size} | {trial['p']:.2g} | {'yes' if trial['kept'] else 'no'} |"
        yield from ("", "loss: relative to the winner's, the mean over tunings and tasks: what is tested here.")
    yield from ("", "## To check it", "", "```", *data["commands"], "```", "")
    yield from ("## By whom", "")
    yield from _by_whom(data)
    yield f"- written {data['date']} with {_machine(data)}"
    yield from ("", f"Digest {data['sha256']}.")


def _by_whom(data: Mapping[str, Any]) -> Iterator[str]:
    """Sessions, those in a row that are alike in one line."""
    rows: list[tuple[str, list[str]]] = []
    for session in data["sessions"]:
        workers = [f"; worker with {_machine(worker)}" for worker in session["workers"]]
        line = _machine(session) + "".join(workers)
        if not rows or rows[-1][0] != line:
            rows.append((line, []))
        rows[-1][1].append(session["began"])
    for line, began in rows:
        when = began[0] if len(began) == 1 else f"{began[0]} to {began[-1]} ({len(began)} of them)"
        yield f"- session of {when} with {line}"


def _machine(of: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in of["versions"].items())
    hardware = ", ".join(f"{name} {value}" for name, value in of["hardware"].items())
    return f"{versions}; on {hardware}"


def _provenance(data: Mapping[str, Any]) -> Iterator[str]:
    source = data["provenance"]
    yield f"- run {source['run']}, space {source['space']['name']}, seed {source['seed']}"
    for session in source["sessions"]:
        by = f" by `{session['command']}`" if session["command"] else ""
        of = f" with {_machine(session)}" if session["versions"] else ""
        yield f"- searched from {session['began']}{by}{of}"
    spent = source["spent"]
    yield (
        f"- spent by the search: {spent['proposed']:,} proposed, {spent['trained']:,} trained,"
        f" {spent['model_steps']:,} model steps, {spent['seconds']:.0f} s"
    )
    yield f"- archive {source['archive']}, of {source['generations']} generations"
    if source["lineage"]:
        steps = [f"{each['id']} ({each['origin']})" for each in source["lineage"]]
        shown = steps if len(steps) <= 12 else [*steps[:2], "...", *steps[-9:]]
        yield f"- lineage, the oldest first: {' -> '.join(shown)}"
    for point in data["curve"]:
        chosen = ", chosen" if point["candidate"] == data["checkpoint"]["candidate"] else ""
        yield (
            f"- leader from generation {point['generation']}: candidate {point['candidate']}, on select tasks"
            f" {point['score']:+.4f} +- {point['error']:.4f} nats{chosen}"
        )


def _contests(data: Mapping[str, Any]) -> Iterator[str]:
    yield "| contest | contender | against | tunings won | loss | p | passed |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for contest, found in zip(data["contests"], data["statistics"], strict=True):
        for name, row in found["versus"].items():
            for baseline, own in row.items():
                p, passed = f"{found['adjusted'][name]:.2g}", "yes" if name in found["passed"] else "no"
                if baseline in contest.get("beside", ()):
                    p, passed = "", "not asked"
                yield (
                    f"| {contest['terms']['name']} | {name} | {baseline} | {own['won']} of {own['tunings']} |"
                    f" {percent(own['overall']['difference']['value'])} | {p} | {passed} |"
                )
    yield ""
    for contest in data["contests"]:
        terms = contest["terms"]
        own = "all hyperparameters" if terms["own"] else "lr and weight decay"
        tasks = ", ".join(f"{task} ({steps} steps)" for task, steps in terms["tasks"].items())
        numbers = ", ".join(f"{name} {count}" for name, count in contest["tuned"].items())
        yield (
            f"- {terms['name']}: {tasks}; {terms['least']} to {terms['most']} tunings of {terms['trials']} trials x"
            f" {terms['tuning_seeds']} seeds, scored on {terms['fresh']} fresh seeds each; {own} tuned for everybody"
            f" (dimensions: {numbers}); error rate {terms['error_rate']:g}; on {terms['device']}"
            + (f"; {contest['place']}" if contest["place"] else "")
        )
    for contest in data["contests"]:
        yield from _seeds(contest)
    for stage in (*data["contests"], *([data["ablation"]] if data["ablation"] is not None else [])):
        yield from _learning_rates(Contest.of(stage))
    yield "- loss: relative to the other's, the interquartile mean over all tasks, tunings and fresh seeds."
    yield "- p: largest over baselines, sequential (valid whenever one stops), Holm-corrected over candidates."
    yield "- who passes is ahead of each baseline in the mean of its tunings, too."
    spent = ", ".join(f"{name} {steps:,}" for name, steps in data["spent"]["model_steps"].items())
    yield f"- spent in model steps: {spent}; {data['spent']['seconds']:.0f} s here"


def _seeds(contest: Mapping[str, Any]) -> Iterator[str]:
    """Which seeds a contest's tunings had, and how they were trained."""
    held, name = Contest.of(contest), contest["terms"]["name"]
    tunings = [tuned for row in held.results.values() for own in row.values() for tuned in own]
    rows = {tuned.seed: tuned.seeds for tuned in tunings}
    each = [
        f"{seed}: {_range(tuning_seeds(seed, held.terms.tuning_seeds))} / {_range(rows[seed])}" for seed in sorted(rows)
    ]
    yield f"- seeds of {name} (tuning: tuning seeds / fresh seeds): {'; '.join(each)}"
    counts: dict[str, int] = {}
    for tuned in tunings:
        words = " and ".join(map(str, tuned.all_built))
        counts[words] = counts.get(words, 0) + 1
    ways = "; ".join(f"{words} ({count} tunings)" for words, count in sorted(counts.items()))
    yield f"- {name} was trained with {ways}"


def _learning_rates(contest: Contest) -> Iterator[str]:
    """Where the best learning rates of tunings are in doubt: at the edge of what was offered, or far apart. Of a
    simplification, whose variants are many, how often."""
    stage, many = contest.terms.name, contest.terms.name == "simplify"
    rows = [(f"{name} on {task}", own) for task, row in contest.results.items() for name, own in row.items()]
    edges = {where: sum(each.at_edge for each in own) for where, own in rows}
    if any(edges.values()):
        found = "; ".join(f"{where} in {edges[where]} of {len(own)} tunings" for where, own in rows if edges[where])
        if many:
            found = f"in {sum(edges.values())} of {sum(len(own) for _, own in rows)} tunings"
        yield (
            f"- {stage}: the best learning rate lies at the edge of what was tried: {found}; a better one may lie"
            " beyond, and more trials would extend the range"
        )
    rates = {where: [each.hypers["lr"] for each in own] for where, own in rows}
    if wide := [where for where, own in rates.items() if max(own) > WIDE * min(own)]:
        spans = ((where, min(rates[where]), max(rates[where])) for where in wide)
        found = "; ".join(f"{where} ({high / low:.3g} times, {low:.2g} to {high:.2g})" for where, low, high in spans)
        if many:
            found = f"{len(wide)} of {len(rows)} contenders"
        yield (
            f"- {stage}: best learning rates of a contender's tunings lie more than {WIDE:g} times apart: {found}; the"
            " loss hardly depends on them there, or trials are too few to find the best one"
        )


def _range(seeds: Sequence[int]) -> str:
    return f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"


def _detail(data: Mapping[str, Any]) -> Iterator[str]:
    found = data["statistics"][-1]
    prints = data["footprints"]
    yield "| task | contender | loss | against | difference | speed-up | step | bytes |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name, row in found["versus"].items():
        for baseline, own in row.items():
            for task, cells in own["cells"].items():
                for each in (baseline, name):
                    cell, cost = cells[each], prints[task][each]
                    gap = "" if each == baseline else _interval(cell["difference"], percent)
                    speed = "" if each == baseline else _interval(cell["speed_up"], lambda x: f"{x:.2f}x")
                    step = "" if cost["seconds"] is None else f"{1e6 * cost['seconds']:.0f} us"
                    yield (
                        f"| {task} | {each} | {_interval(cell['loss'], lambda x: f'{x:.4g}')} |"
                        f" {'' if each == baseline else baseline} | {gap} | {speed} | {step} |"
                        f" {cost['state_bytes']:.3g} |"
                    )
    timed = sorted({cost["device"] for row in prints.values() for cost in row.values()})
    yield from ("", f"Steps were timed on {' and '.join(timed)}, the gradients there already.", "")
    for name, row in found["versus"].items():
        for baseline, own in row.items():
            over = own["overall"]
            yield (
                f"- {name} against {baseline}, over all tasks: interquartile mean of the differences"
                f" {_interval(over['difference'], percent)}, probability of improvement"
                f" {_interval(over['improvement'], lambda x: f'{100 * x:.0f} %')}, tunings won"
                f" {_interval(own['win_rate'], lambda x: f'{100 * x:.0f} %')}"
            )
    factors = found["profile"]["factors"]
    first = data["contests"][-1]["baselines"][0]
    yield from ("", f"Share of runs, in %, within a factor of {first}'s mean loss, with its 95 % band:", "")
    yield f"| contender | {' | '.join(f'{factor:g}' for factor in factors)} |"
    yield "| --- " * (1 + len(factors)) + "|"
    for name, profile in found["profile"].items():
        if name != "factors":
            cells = (
                f"{100 * share:.0f} ({100 * low:.0f} to {100 * high:.0f})"
                for share, low, high in zip(*profile, strict=True)
            )
            yield f"| {name} | {' | '.join(cells)} |"


def _interval(estimate: Mapping[str, float | None] | None, shown: Any) -> str:
    if estimate is None:
        return ""
    value, low, high = (math.nan if estimate[key] is None else estimate[key] for key in ("value", "low", "high"))
    if not math.isfinite(float(value or 0.0)):
        return "-"
    ends = [shown(end) if end is not None and math.isfinite(end) else "-" for end in (low, high)]
    return f"{shown(value)} ({ends[0]} to {ends[1]})"
