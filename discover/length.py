"""How long a rule is: one count for rules that a person wrote and for programs that a search changes."""

from __future__ import annotations

from dsl.flatten import flatten, tidy, with_literals
from dsl.program import Program, all_facts, specialize


def length(program: Program) -> int:
    """Statements of one operator each, as `max_statements` of a space counts them: dead ones and hyperparameters aside
    (but lr and weight_decay, which stay), and of static ifs the longest way through.

    >>> import dsl
    >>> length(dsl.load("adamw"))
    13
    """
    flat = flatten(with_literals(tidy(program)))
    return max(len(specialize(flat.body, facts)) for facts in all_facts(flat))
