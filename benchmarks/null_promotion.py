"""How often promotion is fooled: a run that found nothing but AdamW in disguise, promoted against AdamW.

    python -m benchmarks.null_promotion [--candidates 40] [--seed 0]

Makes a run as a search leaves it, whose leaders lead by luck alone, and gives it to `discover promote RUN --top 40`. So
its leaders are scored and a checkpoint is chosen, constants are lifted, what is a baseline but for these is left out,
all others are tuned for a rung of two small tasks, and what passes goes on to the final task and the certificate.

Disguises: statements in another order, bias correction by hand, the root of v kept in place of v, state that holds -g
or 2 g, division by a reciprocal or a logarithm, a step by its sign and its size, weight decay within the step; rates up
to 1.2 times larger or smaller, eps up to ten times. By its text promotion knows none of them for AdamW, though each is:
what lifting makes of it has AdamW's hyperparameters and no others, and does the same at the same values. Only the
ranges differ that these are tuned in, since they lie around a rule's own constants; around AdamW's own, most tunings
would come to the same, and show nothing. So each that passes is a mistake, and any mistake at all may happen in a share
`error_rate` of such promotions.

For comparison: how many would be called better by a t-test over the fresh seeds of one tuning, and over those of all
tunings, as if seeds were independent. JSON on stdout, what promotion says on stderr. Where promotion leaves a disguise
out, less is tested than was asked for: exit code 1. From a checkout alone, since the run is made by `tests.searched`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import dsl
from discover import cli, named_tasks, statistics
from discover.contest import Contest, log_gaps, wins
from discover.errors import UserError
from discover.manifest import read_json
from discover.promotion_keys import least_tunings
from discover.records import Candidate, Confirmation, Generation
from discover.runs import CERTIFICATE
from discover.space import Space
from tests.searched import generation, run_of

MEANS = (
    ("m = lerp(m, g, {w1})", "debias(m, {b1})"),
    ("m = lerp(m, neg(g), {w1})", "neg(debias(m, {b1}))"),
    ("m = lerp(m, 2 * g, {w1})", "0.5 * debias(m, {b1})"),
)
"""How the first moment is kept, and what it is worth."""

ROOTS = (
    ("v = lerp(v, square(g), {w2})", "sqrt(debias(v, {b2}))"),
    ("v = lerp(v, g * g, {w2})", "sqrt(v) / sqrt(1 - {b2} ** t)"),
    ("v = lerp(v, square(2 * g), {w2})", "0.5 * sqrt(debias(v, {b2}))"),
    ("v = sqrt(lerp(square(v), square(g), {w2}))", "sqrt(debias(square(v), {b2}))"),
    ("v = sqrt(lerp(square(v), g * g, {w2}))", "v / sqrt(1 - {b2} ** t)"),
)
"""How the second moment is kept, and what its root is."""

STEPS = (
    "{mean} / ({root} + {eps})",
    "{mean} * reciprocal({root} + {eps})",
    "{mean} * exp(0 - log({root} + {eps}))",
    "sign({mean}) * abs({mean} / ({root} + {eps}))",
)

DECAYS = (
    ("p = p * (1 - lr * weight_decay)", "p = p - lr * u"),
    ("p = p - lr * weight_decay * p", "p = p - lr * u"),
    ("p = p - lr * (weight_decay * p)", "p = p - lr * u"),
    ("", "p = p - lr * (u + weight_decay * p)"),
)
"""A statement that decays weights, or none, and the last one."""

FORMS = tuple(product(MEANS, ROOTS, STEPS, DECAYS))

SEARCHED, TASKS, FINAL = "quadratic", ("diabetes_regression", "breast_cancer"), "wine_classification"
"""What the run would have searched on, the rung's tasks, and the final one."""


def disguises(count: int, rng: np.random.Generator) -> list[str]:
    """Rules that are AdamW, no two of one form.

    Raises:
        UserError: there are not so many forms.
    """
    if count > len(FORMS):
        raise UserError(f"{count} candidates: there are {len(FORMS)} disguises")
    drawn = rng.permutation(len(FORMS))[:count].tolist()
    return [disguise(f"disguise_{number}", place, rng) for number, place in enumerate(drawn)]


def disguise(name: str, place: int, rng: np.random.Generator) -> str:
    """AdamW in the form at this place of `FORMS`, with constants and an order of statements that are drawn."""
    (m, mean), (v, root), step, (decay, last) = FORMS[place]
    w1, w2 = round(0.1 * 1.2 ** rng.uniform(-1, 1), 6), round(0.001 * 1.2 ** rng.uniform(-1, 1), 8)
    eps = f"{1e-8 * 10 ** rng.uniform(-1, 1):.3g}"
    values = {"w1": w1, "w2": w2, "b1": f"{1 - w1:.6g}", "b2": f"{1 - w2:.8g}"}
    moments = [m, v]
    rng.shuffle(moments)
    lines = [*moments, f"u = {step.format(mean=mean, root=root, eps=eps)}"]
    if decay:
        lines.insert(int(rng.integers(0, 4)), decay)
    body = "\n".join(f"    {line}" for line in [*lines, last])
    return f"def {name}(p, g, m: zeros, v: zeros, *, lr=0.001, weight_decay=0.01):\n{body}\n".format(**values)


def space_of(asked: argparse.Namespace) -> Space:
    """The run's space, by the options of the command line. The rung is long enough for a candidate that wins all
    tunings to pass at the first look.

    Raises:
        UserError: no such task, one that is in two sets, or too few tunings for so many candidates.
    """
    sizes = {"steps": asked.steps, "trials": asked.trials, "fresh": asked.fresh}
    rung = {**sizes, "error_rate": asked.error_rate}
    first, last = least_tunings(asked.error_rate, asked.candidates), least_tunings(asked.error_rate, 1)
    plain = {
        "name": "null",
        "ancestor": "adamw",
        "operators": ["add", "sub", "mul", "div", "sqrt", "lerp", "debias"],
        "tasks": {
            "search": [SEARCHED],
            "select": [named_tasks.load(name).spelling for name in asked.task or TASKS],
            "final": [FINAL],
        },
        "rungs": [{"tasks": [SEARCHED]}],
        "promote": {
            "top": asked.candidates,
            "baselines": ["adamw"],
            "seed": asked.seed,
            "incumbents": sizes,
            "rungs": [{**rung, "tunings": [first, asked.most]}],
            "simplify": sizes,
            "final": {**rung, "tunings": [last, asked.most]},
        },
    }
    return Space.of(plain, "the null test's space")


def searched(rules: Sequence[str], rng: np.random.Generator) -> Iterator[Generation]:
    """A search that trained these rules in its first generation and confirmed one in each further one. All scores are
    luck, so now and then another one leads, and whichever checkpoint is taken, all have a place."""
    scores = 0.1 * rng.standard_normal((2, len(rules)))
    programs = [dsl.fingerprint(dsl.parse(text)) for text in rules]
    yield generation(
        0,
        [
            Candidate(n, 0, "disguised", (), text, own.structure, own.behaviour, "trained", fitness=float(scores[0, n]))
            for n, (text, own) in enumerate(zip(rules, programs, strict=True))
        ],
    )
    for n, score in enumerate(scores[1].tolist()):
        yield generation(n + 1, confirmations=[Confirmation(n, n + 1, score, 0.05, 4, score)])


def promoted(folder: Path, candidates: int, storage: str, workers: int) -> dict[str, Any]:
    """The certificate of a run, by the command that any run is promoted by. Leaves the program where that is refused or
    stopped."""
    options = {"top": candidates, "storage": storage, "workers": workers}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with redirect_stdout(sys.stderr):
        code = cli.main(["promote", str(folder), *words])
    if code or not (folder / CERTIFICATE).is_file():
        sys.exit(code or 130)
    return read_json(folder / CERTIFICATE)


def found(certificate: Mapping[str, Any]) -> dict[str, Any]:
    """What the certificate of such a run says of promotion.

    Raises:
        UserError: promotion left disguises out.
    """
    places, took_part = certificate["standing"]["places"], len(certificate["candidates"])
    if took_part < places:
        raise UserError(f"{took_part} of {places} disguises took part: {'; '.join(certificate['left_out'])}")
    contest = Contest.of(next(each for each in certificate["contests"] if each["terms"]["name"] == "rung 1"))
    (baseline,), terms = contest.baselines, contest.terms
    one, every = 0, 0
    for name in contest.candidates:
        gaps = np.mean(log_gaps(contest.results, name, baseline), axis=0)
        one += _called(gaps[0], terms.error_rate)
        every += _called(gaps.ravel(), terms.error_rate)
    won = [wins(contest.results, name, baseline) for name in contest.candidates]
    p = contest.p
    return {
        "promoted": len(contest.passed),
        "candidates": took_part,
        "error_rate": terms.error_rate,
        "alone": sum(value <= terms.error_rate for value in p.values()),
        "smallest_p": min(p.values()),
        "tunings_won": round(float(np.mean([each for own in won for each in own])), 3),
        "by_seeds_of_one_tuning": one,
        "by_seeds_of_all_tunings": every,
        "leaders": len(certificate["curve"]),
        "checkpoint": certificate["checkpoint"]["generation"],
        "outcome": certificate["outcome"],
        "terms": {
            "tasks": dict(terms.tasks),
            "trials": terms.trials,
            "fresh": terms.fresh,
            "seed": certificate["provenance"]["seed"],
        },
        "tunings": [min(map(len, won)), max(map(len, won))],
        "model_steps": sum(certificate["spent"]["model_steps"].values()),
        "versions": certificate["versions"],
    }


def _called(gaps: np.ndarray, error_rate: float) -> bool:
    """Whether a t-test calls it better that takes these differences of log loss for independent ones."""
    return statistics.paired_test(gaps) <= 2 * error_rate and float(gaps.mean()) < 0


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--task", action="append", help="of the rung; may be repeated; by default two small ones")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--fresh", type=int, default=4)
    parser.add_argument("--most", type=int, default=20, help="tunings")
    parser.add_argument("--error-rate", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0, help="of disguises, luck in the search, tunings and fresh seeds")
    parser.add_argument("--workers", type=int, default=0, help="as for `discover promote`; by default this process")
    parser.add_argument("--out", type=Path, help="a new folder for the run; by default it is not kept")
    parser.add_argument("--storage", help="an Optuna storage; by default nothing is kept")
    asked = parser.parse_args(words)
    began, rng = time.perf_counter(), np.random.default_rng(asked.seed)
    command = ["python", "-m", "benchmarks.null_promotion", *(sys.argv[1:] if words is None else words)]
    try:
        with TemporaryDirectory() as scratch:
            generations = searched(disguises(asked.candidates, rng), rng)
            folder = asked.out or Path(scratch, "null")
            run_of(space_of(asked), generations, folder, seed=asked.seed, command=command)
            storage = asked.storage or f"sqlite:///{Path(scratch, 'studies.sqlite')}"
            result = found(promoted(folder, asked.candidates, storage, asked.workers))
    except UserError as error:
        sys.exit(f"null_promotion: {error}")
    print(json.dumps(result | {"seconds": round(time.perf_counter() - began, 1)}, indent=1))


if __name__ == "__main__":
    main()
