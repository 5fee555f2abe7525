"""Optimizers for training scripts, made from rules: built in, registered, found in a run, or in a file.

    from discover import optim

    opt = optim.create("lion", model.parameters(), lr=1e-4, weight_decay=0.1)
    opt = optim.Lion(model.parameters(), lr=1e-4, weight_decay=0.1)           # the same

Every built-in or registered rule that takes no other rule is a class of this module (`sgd_sai` is `optim.SgdSai`).
"""

from __future__ import annotations

from typing import Any

import dsl
from discover.optimizer import RuleOptimizer, class_name, class_of
from discover.rule_names import rule_of
from dsl.library import registered_names
from dsl.program import Program, RuleError

__all__ = ["RuleOptimizer", "available", "create", "optimizer_class"]


def create(rule: str | Program, params: Any, **hypers: Any) -> RuleOptimizer:
    """Makes an optimizer.

    Args:
        rule: a built-in or registered name, a composition such as `"ema_nesterov(adamw)"`, a `.rule` file, `RUN@K` (the
            K-th of a run), each also with other defaults, `"lion(beta1=0.8)"`; or a program.
        params: parameters, parameter groups (each may set `role` and any hyperparameter), or a module.
        hypers: the rule's hyperparameters by name; the rule's defaults otherwise. `maximize=True` goes uphill.

    Raises:
        ValueError: no such rule, no such hyperparameter, or a value out of range; the text says what there is.
    """
    return optimizer_class(rule)(params, **hypers)


def optimizer_class(rule: str | Program) -> type[RuleOptimizer]:
    """The optimizer class of a rule: picklable, with the rule's hyperparameters as its signature.

    Raises:
        ValueError: no such rule; or one that takes another rule and was given none.
    """
    program = _program(rule)
    if program.rules:
        raise RuleError(f"rule '{program.name}' takes a rule; write '{program.name}(adamw)', for example")
    return class_of(program)


def available() -> list[str]:
    """The names that `create` takes, sorted: built in and registered; not wrappers, which take one of them."""
    return sorted({name for name in (*dsl.names(), *registered_names()) if not dsl.load(name).rules})


def _program(rule: str | Program) -> Program:
    if isinstance(rule, Program):
        return dsl.check(rule) if not rule.rules else rule
    return rule_of(rule)


def __getattr__(name: str) -> Any:
    if name[:1].isupper():
        for rule in (*dsl.names(), *registered_names()):
            if class_name(rule) == name:
                return optimizer_class(rule)
    raise AttributeError(f"module 'discover.optim' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, *(class_name(name) for name in available())]
