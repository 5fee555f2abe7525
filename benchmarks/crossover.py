"""Evolution with crossover, to see whether it is worth it: an arm of `benchmarks.ablation`.

A value of one program is computed in the other too, and read there in some value's place. (Published, for AutoML-Zero,
arXiv:2003.03384: no gain from crossover.)
"""

from __future__ import annotations

from dataclasses import replace

from numpy.random import Generator

from discover.chance import pick
from discover.evolution import Bred, Evolution
from discover.mutate import Grammar, Mutation, Place, View, settled, straight_lines, with_line
from dsl.program import Assign, Call, Expr, Name, Program, map_names, names_read

SHARE = 0.2
"""Of children: so many have a second parent."""

_TRIES = 10


class Crossover(Evolution):
    """Aging evolution, some of whose children take a value from a second parent."""

    def child(self, rng: Generator) -> Bred:
        if rng.random() < SHARE:
            parent, mate = (self.tournament(rng) for _ in range(2))
            crossed = cross(parent.program, mate.program, self.context.grammar, rng) if mate != parent else None
            if crossed is not None:
                return crossed, (parent, mate)
        return super().child(rng)


def cross(program: Program, mate: Program, grammar: Grammar, rng: Generator) -> Mutation | None:
    """The program with one of its values taken from the mate: with all statements that it needs there.

    Temporaries get new names; a slot of the mate becomes a free one, or is the program's own where there is none.
    Programs with static ifs exchange within the same straight line.

    Returns:
        None where nothing fits.
    """
    lines, others = list(straight_lines(program.body)), dict(straight_lines(mate.body))
    for _ in range(_TRIES):
        path, line = pick(rng, lines)
        if path not in others:
            continue
        view = View(replace(program, body=line), grammar)
        other = View(replace(mate, body=others[path]), grammar)
        places = view.tensor_places()
        values = [index for index in range(len(other.body)) if index not in other.frame]
        if not places or not values:
            return None
        place, index = pick(rng, places), pick(rng, values)
        grafted = _grafted(view, place, other, index)
        if grafted is not None and (result := settled(with_line(program, path, grafted.program))) is not None:
            return Mutation(result, grafted.change)
    return None


def _grafted(view: View, place: Place, other: View, index: int) -> Mutation | None:
    free = [name for name in view.grammar.slots if name not in view.slots]
    names = {slot: free.pop(0) if free else slot for slot in other.slots}
    fresh = view.fresh_names()
    added: list[Assign] = []
    for statement in _needed(other, index):
        value = map_names(statement.value, lambda name: Name(names.get(name, name)))
        if statement.target not in other.slots:
            names[statement.target] = next(fresh)
        elif names[statement.target] in view.slots:
            continue  # the program's own slot goes on as it does there
        added.append(Assign(names[statement.target], value))
    if not added:
        return None
    crossed = view.with_inserted(place, added)
    return crossed and Mutation(crossed.program, f"cross in {len(added)} statements")


def _needed(view: View, index: int) -> list[Assign]:
    """The statements up to `index` that its value needs, in order."""
    wanted = {view.body[index].target}
    kept: list[Assign] = []
    for statement in reversed(view.body[: index + 1]):
        if statement.target in wanted:
            kept.append(statement)
            wanted |= _read(statement.value)
    return kept[::-1]


def _read(value: Expr) -> frozenset[str]:
    return names_read(value) if isinstance(value, Call | Name) else frozenset()


if __name__ == "__main__":
    print("a library: an arm of `python -m benchmarks.ablation`")
