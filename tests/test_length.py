"""A rule has one length, however it is spelled: what a search counts, what a leaderboard and `show` say."""

from __future__ import annotations

import pytest

import dsl
from discover import console
from discover.length import length
from discover.mutate import straight_lines
from discover.plan import genotype
from discover.records import Candidate, Ranked
from dsl.flatten import tidy

RULES = [name for name in dsl.names() if not dsl.load(name).rules]


@pytest.mark.parametrize("name", RULES)
def test_length_is_that_of_a_search_and_the_same_for_each_spelling(name: str) -> None:
    program = dsl.load(name)
    searched = genotype(program)
    longest = max(len(line) for _, line in straight_lines(searched.body))  # what max_statements limits
    assert length(program) == length(searched) == length(tidy(searched)) == longest


def test_dead_statements_are_not_counted() -> None:
    program = dsl.parse("def r(p, g, *, lr=0.1):\n    a = sign(g)\n    b = sqrt(a)\n    p = p - lr * a\n")
    assert length(program) == 3


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_leaderboard_shows_it(name: str) -> None:
    program = dsl.load(name)
    candidate = Candidate(0, 0, "x", (), dsl.format(genotype(program)), "s", "b", "trained", fitness=0.1)
    (row,) = [line for line in console.leaderboard([Ranked(1, candidate, None)]) if line.startswith("   1  ")]
    assert f" {length(program)}  is {name}" in row
