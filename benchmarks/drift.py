"""Evolution that keeps dead statements, as in the search for Lion, to see whether they are worth it: an arm of
`benchmarks.ablation`.

There 69.8 % of a program's statements were dead: a mutation without effect may matter to one that comes later. Here the
engine strips them before anything is trained or stored, so this proposer keeps its own copy of each program whole, in
the origin of its proposals. Half of what is inserted is wired to nothing, as all of it was there.
"""

from __future__ import annotations

import json
from dataclasses import replace

from numpy.random import Generator

import dsl
from discover.evolution import Bred, Evolution, Member
from discover.mutate import CHANGES, Mutation, View, mutate
from discover.proposers import Context, Proposal, Told
from dsl import Program
from dsl.check import well_typed

WHOLE = " whole: "
"""What stands in an origin before the program with its dead statements."""

UNWIRED = 0.5


class Drift(Evolution):
    """Aging evolution of programs with dead statements, of up to twice the length that the space allows. Duplicates
    join the population too."""

    def __init__(self, context: Context) -> None:
        grammar = replace(context.grammar, max_statements=2 * context.grammar.max_statements)
        super().__init__(replace(context, grammar=grammar))
        self._whole: dict[int, Program] = {}

    def propose(self, rng: Generator) -> Proposal:
        proposal = super().propose(rng)
        return replace(proposal, origin=f"{proposal.origin}{WHOLE}{json.dumps(dsl.format(proposal.program))}")

    def tell(self, told: Told) -> None:
        whole = dsl.parse(json.loads(told.origin.partition(WHOLE)[2]))
        self._whole.setdefault(told.original, whole)
        super().tell(replace(told, program=whole))

    def joins(self, told: Told) -> bool:
        return True

    def child(self, rng: Generator) -> Bred:
        parent = self.tournament(rng)
        return mutate(parent.program, self.context.grammar, rng, _whole, _CHANGES), (parent,)

    def elite(self, candidate: int) -> Member:
        return replace(super().elite(candidate), program=self._whole[candidate])


def _whole(program: Program) -> Program | None:
    """The program with its dead statements; None if it is ill typed."""
    return program if well_typed(program) else None


def _insert(view: View, rng: Generator) -> Mutation | None:
    mutation = CHANGES["insert"](view, rng)
    return _unwired(view, mutation) if mutation is not None and rng.random() < UNWIRED else mutation


def _unwired(view: View, mutation: Mutation) -> Mutation | None:
    """The same insertion, but what was there before reads what it read."""
    old, new = view.body, mutation.program.body
    at = next((index for index, statement in enumerate(old) if statement != new[index]), len(old))
    more = len(new) - len(old)
    return view.with_body([*old[:at], *new[at : at + more], *old[at:]], f"{mutation.change}, wired to nothing")  # type: ignore[list-item]


_CHANGES = {**CHANGES, "insert": _insert}


if __name__ == "__main__":
    print("a library: an arm of `python -m benchmarks.ablation`")
