"""`discover promote`: from a run's leaderboard to a certificate.

incumbents -> checkpoint -> candidates (constants lifted) -> rungs on select tasks -> the winner, simplified -> final
tasks, once -> certificate.

Each stage is kept in the run's folder (promotion.json) when it is done, and every training in the store before that, so
that a promotion that was killed goes on. What a stage comes to depends on the run, the space and versions alone. That
the final tasks are about to be touched, and by which rule, is written down before they are: from then on it is this
rule, whatever is asked for later.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from rich.console import Console

import dsl
from discover import ablate, incumbents, named_tasks
from discover.certify import certify
from discover.contenders import Contender, RuleContender, check, spelled
from discover.contest import Contest, ContestTerms, ask_of, hold, interquartile_difference, wins
from discover.errors import RunError
from discover.keeper import StoppedError
from discover.manifest import read_json
from discover.promotion import Promotion, begin, named_space, program_of
from discover.promotion_keys import Placed, Promote, PromotionRung, Sizes, Tuning
from discover.pruners import Pruner
from discover.ranges import dimensions
from discover.ranges import rounded as to_six_digits
from discover.records import Candidate
from discover.runs import CERTIFICATE, CERTIFIED, READABLE
from discover.sets import facts_of, shared
from discover.storage import default_url, public_url
from discover.verdict import percent
from discover.workshop import Place, Staff, Workshop, interrupted, opened
from dsl import Program
from dsl.canonical import shape_hash, structure_hash
from dsl.identify import nearest

STAGE = 100_000_000
"""Study seeds of a stage. Those of `discover compare` and `discover calibrate` lie below all of them: whoever chooses a
rule by these has seen no seed that it is promoted on."""

INCUMBENTS, SIMPLIFY, FINAL, RUNGS = (STAGE * number for number in range(1, 5))
"""First study seeds, of each further rung `STAGE` later; the same in every run, so that baselines are tuned once."""

APART = 100
"""Study seeds between those of two of a space's `promote.seed`, of which there are a million: the most tunings of a
stage."""


def carry_out(promotion: Promotion, workshop: Workshop) -> dict[str, Any]:
    """Promotes, from wherever an earlier promotion of the run ended, and gives the certificate.

    Raises:
        StoppedError: asked to stop; the same call goes on.
        UserError: a task or baseline that is not there, a candidate that cannot train.
    """
    promotion.open_session(workshop)
    stages(promotion, workshop)
    return certify(promotion)


def stages(promotion: Promotion, workshop: Workshop) -> None:
    """All stages that are not done yet, as far as something passes. Raises what `carry_out` does."""
    state = promotion.state
    if "final" not in state:
        _choose_checkpoint(promotion, workshop)
        passed = _climb(promotion, workshop)
        if passed is not None:
            _simplify(promotion, passed, workshop)
    if "final" in state:
        _finish(promotion, workshop)


# Stages ---------------------------------------------------------------------------------------------------------------


def _choose_checkpoint(promotion: Promotion, workshop: Workshop) -> None:
    """Scores the run's leaders on select tasks, and takes the candidates from where the best of them led."""
    state, settings = promotion.state, promotion.settings
    if "candidates" in state:
        return
    found = promotion.led()
    if not found:
        raise RunError(f"{promotion.folder}: has trained nothing yet; there is nothing to promote")
    led = [(leader, fitness) for leader, fitness, _ in found]
    contenders = [RuleContender(program.name, program) for *_, program in found]
    terms = _terms(promotion, "incumbents", settings.incumbents, INCUMBENTS, "select", workshop)
    contest = _held(promotion, terms, contenders, settings.baselines[:1], workshop)
    points = incumbents.curve(led, [one.name for one in contenders], contest)
    chosen = incumbents.choose(points)
    state["curve"] = [asdict(point) for point in points]
    state["checkpoint"] = asdict(chosen)
    for line in _curve_lines(points, chosen):
        workshop.say(line)
    known = [*map(promotion.contender, settings.baselines), *_beside(promotion)]
    count, ranked = promotion.standing(chosen.generation)
    state["candidates"], state["left_out"] = _distinct(ranked, settings, known)
    seen = ranked[: len(state["candidates"]) + len(state["left_out"])]
    looked_at = [{"id": each.id, "origin": each.origin, "text": each.text} for each in seen]
    state["standing"] = {"places": count, "looked_at": looked_at}
    for line in state["left_out"]:
        workshop.say(line)
    promotion.keep()


def _curve_lines(points: Sequence[incumbents.Point], chosen: incumbents.Point) -> Iterator[str]:
    yield "meta-overfitting: leaders of the run on select tasks (nats below the baseline's loss; higher is better)"
    for point in points:
        found = "none" if point.fitness is None else f"{point.fitness:+.4f}"
        mark = " <- the checkpoint" if point == chosen else ""
        yield (
            f"  from generation {point.generation:>4}: candidate {point.candidate:>6}, in the search {found},"
            f" on select tasks {point.score:+.4f} +- {point.error:.4f}{mark}"
        )


def _beside(promotion: Promotion) -> list[Contender]:
    """What is shown beside a winner: where the search began, and what the space names."""
    configuration = promotion.manifest.configuration
    began = zip(configuration.space.ancestor, configuration.ancestors, strict=True)
    others: list[Contender] = [RuleContender(name, dsl.parse(text)) for name, text in began]
    others += map(promotion.contender, promotion.settings.beside)
    asked = map(promotion.contender, promotion.settings.final.baselines or promotion.settings.baselines)
    known = {one.fingerprint for one in asked}
    return list({one.fingerprint: one for one in reversed(others) if one.fingerprint not in known}.values())[::-1]


def _distinct(
    ranked: Sequence[Candidate], settings: Promote, rules: Sequence[Contender]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The first candidates that differ in more than what is tuned anyhow, from each other and from known rules."""
    digest = shape_hash if settings.own else structure_hash
    known = {digest(one.program): one.name for one in rules if isinstance(one, RuleContender)}
    found: list[dict[str, Any]] = []
    left_out = []
    for place, candidate in enumerate(ranked, start=1):
        if len(found) == settings.top:
            break
        program = program_of(candidate.id, candidate.text)
        if (same := known.get(digest(program))) is not None:
            left_out.append(f"candidate {candidate.id} (place {place}) is {same} but for constants, which are tuned")
            continue
        known[digest(program)] = f"candidate {candidate.id}"
        found.append(
            {
                "name": program.name,
                "id": candidate.id,
                "place": place,
                "origin": candidate.origin,
                "found": candidate.text,
                "text": dsl.format(program),
            }
        )
    return found, left_out


def _climb(promotion: Promotion, workshop: Workshop) -> str | None:
    """The rungs; who passed the last one first, if anybody did."""
    playing = {each["name"]: dsl.parse(each["text"]) for each in promotion.state["candidates"]}
    if not playing:
        workshop.say("every candidate is a known rule but for its constants: there is nothing to promote")
        return None
    passed: tuple[str, ...] = ()
    for number, rung in enumerate(promotion.settings.rungs):
        name = f"rung {number + 1}"
        terms = _terms(promotion, name, rung, RUNGS + STAGE * number, "select", workshop)
        contenders = [RuleContender(each, program) for each, program in playing.items()]
        contest = _held(promotion, terms, contenders, rung.baselines or promotion.settings.baselines, workshop)
        passed = contest.passed
        for line in _contest_lines(contest):
            workshop.say(line)
        if not passed:
            return None
        playing = {each: playing[each] for each in passed}
    return passed[0]


def _contest_lines(contest: Contest) -> Iterator[str]:
    adjusted, passed = contest.adjusted, contest.passed
    for name in contest.candidates:
        baseline = contest.hardest(name)
        won = wins(contest.results, name, baseline)
        size = percent(interquartile_difference(contest.results, name, baseline))
        verdict = "passes" if name in passed else "does not pass"
        yield (
            f"{contest.terms.name}: {name} {verdict}: ahead of {baseline} in {won.count(1.0)} of {len(won)} tunings,"
            f" loss {size} (interquartile mean), p = {adjusted[name]:.2g} (limit {contest.terms.error_rate:g})"
        )


def _simplify(promotion: Promotion, name: str, workshop: Workshop) -> None:
    """Simplifies the winner, names it, and writes down that it is what the final tasks will see."""
    state, settings = promotion.state, promotion.settings
    began = time.perf_counter()
    text = next(each["text"] for each in state["candidates"] if each["name"] == name)
    last = Contest.of(state["stages"][f"rung {len(settings.rungs)}"])
    winner = tuned(dsl.parse(text), last, name)
    sizes: Tuning = settings.simplify
    if not sizes.tasks:
        sizes = sizes.model_copy(update={"tasks": tuple(state["stages"]["rung 1"]["terms"]["tasks"])})
    if place := _place(promotion, "simplify", sizes, workshop)[2]:
        workshop.say(f"simplify: {place}")
    terms = _terms(promotion, "simplify", sizes, SIMPLIFY, "select", workshop)
    terms = replace(terms, own=False, error_rate=settings.simplify.error_rate)
    found = ablate.simplify(winner, terms, settings.simplify.margin, workshop)
    identity = str(nearest(found.program))
    workshop.say(f"simplified: {identity}")
    state["winner"] = name
    state["simplification"] = [asdict(trial) for trial in found.trials]
    state["stages"]["simplify"] = _plain(found.contest, found.contenders, place, workshop)
    state["seconds"]["simplify"] = time.perf_counter() - began
    state["final"] = {
        "rule": name,
        "text": dsl.format(found.program),
        "identity": identity,
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    promotion.keep()


def tuned(program: Program, contest: Contest, name: str) -> Program:
    """The program with what was found for it in a contest as its defaults: geometric means over tunings and tasks, of
    weight decay the median, to six digits."""
    values: dict[str, float] = {}
    every = [each.hypers for row in contest.results.values() for each in row[name]]
    for hyper in program.hypers:
        found = [own[hyper.name] for own in every if hyper.name in own]
        if hyper.name == "weight_decay" and found:
            values[hyper.name] = to_six_digits(float(np.median(found)))
        elif found:
            values[hyper.name] = to_six_digits(math.exp(float(np.mean(np.log(found)))))
    return program.with_defaults(values)


def _finish(promotion: Promotion, workshop: Workshop) -> None:
    """The one contest on the final tasks, of the rule that was written down for it."""
    state, settings = promotion.state, promotion.settings
    program = dsl.parse(state["final"]["text"])
    terms = _terms(promotion, "final", settings.final, FINAL, "final", workshop)
    if "final" not in state["stages"]:
        workshop.say(f"final tasks: touched once, by {program.name} as recorded {state['final']['recorded']}")
    if line := shared(terms.tasks, promotion.seen, *facts_of((*terms.tasks, *promotion.seen))):
        workshop.say(f"final tasks: {line}")
    one = RuleContender(program.name, program)
    against = settings.final.baselines or settings.baselines
    contest = _held(promotion, terms, [one], against, workshop, beside=_beside(promotion))
    for line in _contest_lines(contest):
        workshop.say(line)


# Terms ----------------------------------------------------------------------------------------------------------------


def _place(promotion: Promotion, name: str, sizes: Placed, workshop: Workshop) -> tuple[Place, Sizes, str]:
    """Where a stage is trained, at which sizes, and a line that says so where it is not as asked for."""
    place = promotion.place(name, sizes.request, workshop)
    return place, *fitted(sizes, place)


def fitted(sizes: Placed, place: Place) -> tuple[Sizes, str]:
    """At which sizes a stage is trained at a place, and a line that says so where it is not as asked for."""
    if not place.missing:
        return sizes, f"on {place.on}" if place.on else ""
    smaller = "at the size given for it (`here`)" if sizes.here else "at full size (it has no `here`)"
    return sizes.here or sizes, f"{place.missing}: trained on the CPU, {smaller}"


def _terms(promotion: Promotion, name: str, sizes: Placed, first: int, part: str, workshop: Workshop) -> ContestTerms:
    place, actual, _ = _place(promotion, name, sizes, workshop)
    known = actual.tasks or sizes.tasks or promotion.split[part]
    loaded = [named_tasks.load(task) for task in known]
    assert isinstance(sizes, PromotionRung | Tuning)
    least, most = sizes.tunings if isinstance(sizes, PromotionRung) else (sizes.tunings, sizes.tunings)
    return ContestTerms(
        name=name,
        tasks={task.spelling: actual.steps_of(task.horizon) for task in loaded},
        trials=sizes.trials,
        tuning_seeds=sizes.tuning_seeds,
        fresh=sizes.fresh,
        least=least,
        most=most,
        error_rate=sizes.error_rate if isinstance(sizes, PromotionRung) else 0.05,
        own=promotion.settings.own,
        first=first + APART * promotion.settings.seed,
        device=place.device,
        compile=promotion.compile,
        pruner=promotion.settings.pruner,
        request=place.request,
    )


def _held(
    promotion: Promotion,
    terms: ContestTerms,
    candidates: Sequence[Contender],
    baselines: Sequence[str],
    workshop: Workshop,
    *,
    beside: Sequence[Contender] = (),
) -> Contest:
    """The contest, from promotion.json if it is there."""
    state = promotion.state
    if (stored := state["stages"].get(terms.name)) is not None:
        return Contest.of(stored)
    sizes = _sizes(promotion.settings, terms.name)
    if place := _place(promotion, terms.name, sizes, workshop)[2]:
        workshop.say(f"{terms.name}: {place}")
    promotion.keep()  # what was asked for stays so from here on
    began = time.perf_counter()
    against = [promotion.contender(name) for name in baselines]
    everybody = [*against, *beside, *candidates]
    for task in terms.tasks:
        for one in everybody:
            check(one, named_tasks.load(task))
    contest = hold(terms, candidates, against, workshop, beside)
    state["stages"][terms.name] = _plain(contest, everybody, place, workshop)
    state["seconds"][terms.name] = time.perf_counter() - began
    promotion.keep()
    return contest


def _plain(contest: Contest, everybody: Sequence[Contender], place: str, workshop: Workshop) -> dict[str, Any]:
    """A stage as promotion.json and certificates have it."""
    return {
        **contest.plain(),
        "rules": {one.name: spelled(one) for one in everybody},
        "tuned": {one.name: _dimensions(one, contest.terms, workshop) for one in everybody},
        "place": place,
    }


def _sizes(settings: Promote, name: str) -> Placed:
    if name.startswith("rung "):
        return settings.rungs[int(name.removeprefix("rung ")) - 1]
    return settings.final if name == "final" else settings.incumbents


def _dimensions(one: Contender, terms: ContestTerms, workshop: Workshop) -> int:
    return len(dimensions(one, workshop.ground(ask_of(terms, one, next(iter(terms.tasks)))), own=terms.own))


def repeatable(given: Mapping[str, str | int | None]) -> dict[str, str | int]:
    """Options as they mean the same wherever the command is given again; without passwords."""
    found = {name: value for name, value in given.items() if value is not None}
    return {name: public_url(str(value)) if name == "storage" else value for name, value in found.items()}


# The command ----------------------------------------------------------------------------------------------------------


def run(
    text: str,
    *,
    top: int | None,
    pruner: Pruner | None,
    by: str | None,
    own_tasks: Sequence[str] = (),
    storage: str | None,
    staff: Staff,
    as_json: bool,
    given: Mapping[str, str | int | None] = MappingProxyType({}),
) -> None:
    """Promotes, shows what came of it, and says where the certificate is.

    Args:
        text, top, pruner, by, own_tasks: see `promotion.begin`.
        storage: URL of an Optuna storage; None for the user's own file.
        staff: who trains.
        as_json: print the certificate on stdout, and what is shown to people on stderr.
        given: further options of the command line, which the certificate's command repeats.

    Raises:
        UserError: a mistake of the user's.
    """
    console = Console(stderr=as_json)

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    torch.set_num_threads(1)
    promotion = begin(text, top, pruner, by=by, own_tasks=own_tasks)
    asked, earlier = promotion.settings, (promotion.state.get("by") or {}).get("space")
    if by is not None and named_space(by) != earlier:
        whose = "the run's own space" if earlier is None else earlier
        say(f"an earlier promotion of this run went by {whose}; it stays so: nothing is drawn again")
    if top is not None and top != asked.top:
        taken = f"took its first {asked.top} candidates"
        say(f"an earlier promotion of this run {taken}; it stays so: nothing is drawn again")
    if pruner is not None and pruner != asked.pruner:
        say(f"an earlier promotion of this run was pruned by '{asked.pruner}'; it stays so: nothing is drawn again")
    for line in promotion.notes:
        say(line)
    if (promotion.folder / CERTIFICATE).is_file():
        data = read_json(promotion.folder / CERTIFICATE)
        say("this run was promoted before; its certificate stands, and the final tasks are not touched again")
    else:
        promotion.state["given"] = repeatable(given)
        if promotion.state["tasks"]:
            promotion.keep()  # so that it goes on with them, whenever it is stopped
        url = storage or default_url()
        try:
            with opened(url, staff, console, what="promoting") as workshop:
                data = carry_out(promotion, workshop)
        except StoppedError:
            interrupted(console, url, as_json=as_json, again=f"'discover promote {text}'")
            return
    say("")
    say(data["statement"])
    if data["rule"] is not None:
        say(f"{data['rule']['rule']}: {data['rule']['identity']}")
    if data["outcome"] == "better":
        say(f"use it: discover register {promotion.folder / CERTIFIED} --name my_rule")
    say(f"certificate: {promotion.folder / READABLE}; check it with: {data['commands'][-1]}")
    if as_json:
        print(json.dumps(data | {"folder": str(promotion.folder)}, indent=1))
