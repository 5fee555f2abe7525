"""Laws of planted tasks: they keep the contract, and the rule that is planted is best there."""

from __future__ import annotations

import math
import re
import runpy
from pathlib import Path

import pytest

import benchmarks
import dsl
from benchmarks import planted
from benchmarks.rediscovery import PLANTED
from discover import gradient
from discover.lanes import Lane, train
from tasks.library import check

RULES: dict[str, dict[str, float]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "signsgd": {},
    "adam": {"beta1": 0.9, "beta2": 0.99},
}
BEST = {"heavy_tails": "signsgd", "ill_conditioned": "momentum", "sparse": "adam"}
RATES = tuple(10.0 ** (power / 2) for power in range(-8, 4))


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_best_and_of_the_family(name: str) -> None:
    task = getattr(planted, PLANTED[name].task)()
    check(task, name)
    ready = gradient.build(task, compile=False)
    programs = [dsl.load(rule) for rule in RULES]
    lanes = [
        Lane(index, 0, {"lr": rate, **settings}) for index, settings in enumerate(RULES.values()) for rate in RATES
    ]
    losses = [each.loss for each in train(task, programs, lanes, steps=task.horizon, gradient=ready)]
    best = {rule: min(losses[i * len(RATES) : (i + 1) * len(RATES)]) for i, rule in enumerate(RULES)}
    assert PLANTED[name].has(BEST[name])
    assert PLANTED[name].has(f"lookahead({BEST[name]})")
    assert not PLANTED[name].has("sgd")
    assert all(math.log(best[rule] / best[BEST[name]]) > 0.7 for rule in RULES if rule != BEST[name]), best


@pytest.mark.parametrize("name", ["arms", "drift", "evidence", "planted", "virtual_ray"])
def test_a_library_among_the_benchmarks_says_that_it_is_one(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(benchmarks.__path__[0] + f"/{name}.py", run_name="__main__")
    said = capsys.readouterr().out
    assert said.startswith("a library: ")
    assert said.count("\n") == 1
    for program in re.findall(r"benchmarks\.(\w+)", said):
        assert name in Path(benchmarks.__path__[0], f"{program}.py").read_text()


def test_every_benchmark_answers_when_it_is_run() -> None:
    for path in Path(benchmarks.__path__[0]).glob("[a-z]*.py"):
        assert 'if __name__ == "__main__":' in path.read_text(), path.name
