"""The zoo: what every built-in rule follows, one table a family.

`python -m tests.zoo` prints it with what was measured.
"""

from __future__ import annotations

from tests.zoo import closures, compressed, matrix, relatives, standard, wrappers
from tests.zoo.case import Case

CASES: tuple[Case, ...] = (
    *standard.CASES,
    *relatives.CASES,
    *compressed.CASES,
    *matrix.CASES,
    *closures.CASES,
    *wrappers.CASES,
)
"""All cases."""
