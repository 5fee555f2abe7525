"""Two digests of a program: what it is made of and what it does."""

from __future__ import annotations

from dataclasses import dataclass

from dsl.behaviour import behaviour_hash
from dsl.canonical import structure_hash
from dsl.program import Program


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Stable across processes and machines. Programs of equal structure are the same up to algebra; programs of equal
    behaviour do the same on fixed inputs to seven digits, however they are written.

    Attributes:
        structure: sha256 in hex, see `dsl.canonical.structure_hash`.
        behaviour: sha256 in hex, see `dsl.behaviour`.
    """

    structure: str
    behaviour: str

    def __str__(self) -> str:
        return f"{self.structure[:12]}.{self.behaviour[:12]}"


def fingerprint(program: Program) -> Fingerprint:
    """The fingerprint of a well-formed program at its default hyperparameters (`lr` is given, so it plays no part).

    Raises:
        RuleError: the program is not well formed.
    """
    return Fingerprint(structure_hash(program), behaviour_hash(program))
