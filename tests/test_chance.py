"""Laws of generators: each proposal has its own, whatever others drew, and choices are even."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from numpy.random import default_rng

from discover import chance
from discover.chance import generator, pick


def test_a_generator_is_the_same_whatever_was_drawn_from_others() -> None:
    places = [0, 255, 256, 257, 10_000]
    once = {place: generator((3, 0), place).random(4).tolist() for place in places}
    chance._words.cache_clear()
    again = {place: generator((3, 0), place).random(4).tolist() for place in reversed(places)}
    assert once == again


def test_generators_differ_by_stream_and_place() -> None:
    streams = [(3, 0), (3, 1), (4, 0), (0, 3)]
    first = {generator(stream, place).random() for stream in streams for place in range(600)}
    assert len(first) == 4 * 600
    draws = np.array([generator((3, 0), place).random(64) for place in range(600)])
    correlations = np.corrcoef(draws)[np.triu_indices(600, 1)]
    assert np.abs(correlations).max() < 6.5 / 8.0  # standard deviations of 1 / sqrt(64), among 180,000 pairs
    assert draws.mean() == pytest.approx(0.5, abs=5 * 0.2887 / np.sqrt(draws.size))


def test_a_generator_is_pickled_and_has_children_as_those_of_numpy_do() -> None:
    one = generator((3, 0), 7)
    family = [*one.spawn(2), *one.spawn(1), *copy.deepcopy(one).spawn(1), one]
    first = [each.random() for each in family]
    assert len(set(first)) == 5
    assert first[:2] == [each.random() for each in generator((3, 0), 7).spawn(2)]
    assert pickle.loads(pickle.dumps(one)).random(3).tolist() == one.random(3).tolist()
    assert one.bit_generator.seed_seq.generate_state(3).dtype == np.uint32  # type: ignore[attr-defined]


def test_choices_are_even() -> None:
    rng, among = default_rng(0), "abcdefg"
    counts = np.array([[pick(rng, among) for _ in range(700)].count(each) for each in among])
    assert ((counts - 100) ** 2 / 100).sum() < 22.5  # chi squared, six degrees of freedom: one in a thousand
    assert pick(rng, ["only"]) == "only"
