"""Where hyperparameters are searched: in units that a contender cannot choose, so that no range favours anybody."""

from __future__ import annotations

import math
from dataclasses import dataclass

from discover.contenders import Contender, RuleContender
from discover.trainers import Ground
from dsl.ops import OPS
from dsl.program import Call, Name, Program, assignments, expressions, reads
from dsl.types import SIZED_BY

OCTAVES = 4.0
"""The first range of learning rates reaches so many factors of 2 to each side of the task's own."""

DECAYS = (1e-3, 1.0)
"""The first range of weight decays, in AdamW's units; 0 is tried as well."""

EDGE = 0.1
"""A best value in this outer part of a range, in the logarithm, is at its edge."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """A hyperparameter that is tuned, on a logarithmic scale.

    Attributes:
        name: of the hyperparameter.
        low, high: of what Optuna sees.
        complement: Optuna sees 1 - value: averages (beta1, ...) are about how near to 1 they are.
        zero: 0 is possible as well.
    """

    name: str
    low: float
    high: float
    complement: bool = False
    zero: bool = False

    @property
    def label(self) -> str:
        return f"1 - {self.name}" if self.complement else self.name

    @property
    def switch(self) -> str:
        return f"has {self.name}"

    def at_edge(self, value: float) -> int:
        """-1 or 1 where a value is at the lower or upper edge, else 0."""
        place = math.log(value / self.low) / math.log(self.high / self.low)
        return -1 if place < EDGE and not self.zero else int(place > 1 - EDGE)


def dimensions(contender: Contender, ground: Ground, *, own: bool) -> tuple[Dimension, ...]:
    """The learning rate, the weight decay, and with `own` all other hyperparameters that have a scale.

    An average (a default between 0.5 and 1) is searched from a tenth to ten times its 1 - value, any other positive
    number that is not a count from a tenth to ten times, `eps` to a thousand times. What its author gave a range has
    that one, but for lr and weight_decay, whose units are the same for all. What must be known before training, such as
    the steps of a Newton-Schulz iteration, cannot differ between lanes and is left as it is.
    """
    stride, rate = ground.stride(contender), ground.task.learning_rate
    found = [Dimension("lr", rounded(rate / stride * 2**-OCTAVES), rounded(rate / stride * 2**OCTAVES))]
    if "weight_decay" in contender.defaults:
        low, high = (rounded(limit * stride) for limit in DECAYS)
        found.append(Dimension("weight_decay", low, high, zero=True))
    fixed = {"lr", "weight_decay"}
    if isinstance(contender, RuleContender):
        fixed |= known_before(contender.program)
    for name, default in contender.defaults.items() if own else ():
        if name in fixed:
            continue
        if (range_ := contender.ranges.get(name)) is not None:
            if range_.low > 0:
                found.append(Dimension(name, range_.low, range_.high))
        elif 0.5 <= default < 1:
            gap = 1 - default
            found.append(Dimension(name, rounded(gap / 10), rounded(min(gap * 10, 0.9)), complement=True))
        elif default > 0 and not (isinstance(default, int) or (default == int(default) and default > 1)):
            factor = 1e3 if "eps" in name else 10.0
            found.append(Dimension(name, rounded(default / factor), rounded(default * factor)))
    return tuple(found)


def known_before(program: Program) -> set[str]:
    """Hyperparameters that must be known before training: an operator asks that of them, or of what is made of them, or
    a state has its shape from them; and `seed`, which all lanes share."""
    kept = {"p", *(slot.name for slot in program.slots)}  # never known before, nor what is made of them
    body = [each for each in assignments(program.body) if each.target not in kept]
    everywhere = [each for one in assignments(program.body) for each in expressions(one.value)]
    calls = [each for each in everywhere if isinstance(each, Call) and each.op in OPS]
    asked = [call.args[place] for call in calls for place in OPS[call.op].known_before]
    found = {each.id for arg in asked for each in expressions(arg) if isinstance(each, Name)}
    while more := {name for one in body if one.target in found for name in reads(one)} - found:
        found |= more
    return (found | {"seed", *SIZED_BY.values()}) & program.defaults.keys()


def rounded(value: float) -> float:
    """To six digits: what is stored reads well, and two ways of computing it agree."""
    return float(f"{value:.6g}")
