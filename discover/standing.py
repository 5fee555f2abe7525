"""What candidates of a search are compared by while it goes on: what their scores let one expect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from discover.records import DOUBT


def share(count: int) -> float:
    """How much of a mean's distance from the usual score is believed, of so many scores."""
    return count / (count + DOUBT)


def expected(mean: float, count: int, usual: float) -> float:
    """A candidate's expected fitness: its mean score, drawn towards the usual score the more the fewer scores it is of.
    So neither one lucky score decides nor the doubt about few."""
    return usual + (mean - usual) * share(count)


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
        self._means[candidate] = mean, share(count)

    def __getitem__(self, candidate: int) -> float:
        mean, share = self._means[candidate]
        return self.usual + (mean - self.usual) * share

    def __iter__(self) -> Iterator[int]:
        return iter(self._means)

    def __len__(self) -> int:
        return len(self._means)
