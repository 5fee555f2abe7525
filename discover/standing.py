"""What candidates are compared by: what their scores let one expect of further ones.

The leaderboard orders the confirmed by it, and a search its parents while it goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from discover.records import Confirmation, Generation

DOUBT = 1.5
"""How many scores of the usual size a candidate is given beside its own: about the variance of a fresh score between
instances over that of true fitness between elites, so that one lucky score does not lead."""


def trust(count: int) -> float:
    """How much of a mean's distance from the usual score is believed, of so many scores."""
    return count / (count + DOUBT)


def expected(mean: float, count: int, usual: float) -> float:
    """A candidate's expected fitness: its mean score, drawn towards the usual score the more the fewer scores it is of.
    So neither one lucky score decides nor the doubt about few."""
    return drawn(mean, trust(count), usual)


def drawn(mean: float, share: float, usual: float) -> float:
    """A mean with a share of its distance from the usual score."""
    return usual + (mean - usual) * share


class Standing(Mapping[int, float]):
    """Candidate -> expected fitness. Two that were scored at different times are drawn towards today's usual score.

    Attributes:
        usual: what the middle of those that are trained on all rungs comes to.
    """

    def __init__(self, known: Mapping[int, float]) -> None:
        """`known`: fitnesses that are known without doubt."""
        self.usual = 0.0
        self._means = {candidate: (fitness, 1.0) for candidate, fitness in known.items()}
        """Candidate -> its mean score, and how much of its distance from the usual is believed."""

    def note(self, candidate: int, mean: float, count: int) -> None:
        """The mean of so many scores, in place of what was known of the candidate."""
        self._means[candidate] = mean, trust(count)

    def __getitem__(self, candidate: int) -> float:
        return drawn(*self._means[candidate], self.usual)

    def __iter__(self) -> Iterator[int]:
        return iter(self._means)

    def __len__(self) -> int:
        return len(self._means)


class Confirmed:
    """The candidates that were scored on fresh instances, as generations come.

    Attributes:
        latest: what is known of each.
        usual: the usual score when the last of them were scored.
    """

    def __init__(self) -> None:
        self.latest: dict[int, Confirmation] = {}
        self.usual = 0.0

    def add(self, generation: Generation) -> None:
        self.latest |= {each.candidate: each for each in generation.confirmations}
        if generation.confirmations:
            self.usual = generation.record.usual

    def in_order(self) -> list[Confirmation]:
        """As on the leaderboard: those that did not fail, of whom most is expected first."""
        known = [
            (-expected(each.luckless, each.count, self.usual), each.candidate, each)
            for each in self.latest.values()
            if each.luckless is not None
        ]
        return [each for *_, each in sorted(known, key=lambda row: row[:2])]
