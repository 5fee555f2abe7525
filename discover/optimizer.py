"""Any rule as a `torch.optim.Optimizer`: parameter groups, schedulers, checkpoints and pickling as users know them."""

from __future__ import annotations

import copyreg
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from discover.closures import Closure, calls_backward
from dsl.codegen import COMBINE, Barrier, Code, compiled, generate
from dsl.graph import needs
from dsl.parse import suggest
from dsl.program import ROLES, Facts, Program, Slot
from dsl.types import EXTENTS, size_of

_OWN_KEYS = ("role", "maximize", "reference_lr", "evaluating")
"""What a parameter group holds beside its parameters and the rule's hyperparameters."""


class _RuleClass(type):
    """The class of optimizer classes: one that was made from a rule is pickled as that rule."""


class RuleOptimizer(torch.optim.Optimizer, metaclass=_RuleClass):
    """A rule as an optimizer; `discover.optim.create` and `optimizer_class` make them.

    Args:
        params: parameters, parameter groups (each may set `role` and any hyperparameter), or a module, whose layers
            then say what each parameter is for.
        maximize: goes up the gradient instead of down.
        hypers: the rule's hyperparameters, by name or in order.

    Raises:
        ValueError: an unknown hyperparameter or role, a value that is no finite number, a negative lr, complex
            parameters.

    State has the parameter's dtype. In half precision sums and slow averages stand still early, as they do in torch's
    own optimizers: keep parameters in float32 and use autocast.

    `lr_ratio`, which schedules inside a rule read, is a group's lr over its `reference_lr`: the lr it was made with.
    """

    program: ClassVar[Program | None] = None

    def __init__(self, params: Any, *values: float, maximize: bool = False, **hypers: float) -> None:
        program = self._program()
        names = list(program.defaults)
        if len(values) > len(names):
            raise ValueError(
                f"{self._name()} takes {len(names)} hyperparameters ({', '.join(names)}), got {len(values)}"
            )
        given = dict(zip(names, values, strict=False))
        for name, value in hypers.items():
            if name in given:
                raise ValueError(f"{self._name()}: '{name}' is given twice")
            if name not in names:
                raise ValueError(
                    f"{self._name()} has no hyperparameter '{name}'{suggest(name, names)}; it has {', '.join(names)}"
                )
            given[name] = value
        self._kinds: dict[tuple[torch.Size, str | None], _Kind] = {}
        self._asks = needs(program)
        defaults = {**program.defaults, **given, "role": None, "maximize": maximize, "evaluating": False}
        super().__init__(module_groups(params) if isinstance(params, nn.Module) else params, defaults)

    @classmethod
    def _program(cls) -> Program:
        if cls.program is None:
            raise ValueError("RuleOptimizer has no rule of its own; use discover.optim.create(rule, params)")
        return cls.program

    @classmethod
    def _name(cls) -> str:
        return f"optimizer '{cls._program().name}'"

    # Groups -------------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group: {"params": ..., "role": ..., hyperparameters}. Raises ValueError as the class does."""
        names = list(self._program().defaults)
        for key in param_group:
            if key not in (*names, *_OWN_KEYS, "params", "param_names") and (hint := suggest(key, names)):
                raise ValueError(f"{self._name()}: parameter group: unknown key '{key}'{hint}")
        role = param_group.get("role")
        if role is not None and role not in ROLES:
            raise ValueError(
                f"{self._name()}: unknown role '{role}'{suggest(role, ROLES)}; roles are {', '.join(ROLES)}"
            )
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for name in names:
                if isinstance(group[name], Tensor):
                    group[name] = group[name].item()
                if (
                    isinstance(group[name], bool)
                    or not isinstance(group[name], int | float)
                    or not math.isfinite(group[name])
                ):
                    raise ValueError(f"{self._name()}: {name} must be a finite number, not {group[name]!r}")
                if name == "lr" and group[name] < 0:
                    raise ValueError(f"{self._name()}: lr must not be negative, but is {group[name]}")
            for p in group["params"]:
                if p.is_complex():
                    raise ValueError(
                        f"{self._name()} takes real parameters, this one is {p.dtype}; view it as real first"
                    )
        except ValueError:
            self.param_groups.pop()
            raise
        group.setdefault("reference_lr", group.get("lr", 1.0))

    # Steps --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[..., Any] | None = None, *, examples: int | None = None) -> Any:
        """Updates every parameter that has a gradient; every one that requires it, where the rule takes no gradient.

        Args:
            closure: computes the loss anew, with its gradients; its value is returned. Rules that ask for more than a
                gradient call it again, as `discover.closures` says.
            examples: how many the loss is a mean over, for rules that read it.

        Raises:
            ValueError: a sparse gradient; a step while `eval()` holds; the rule needs a closure, or the number of
                examples, and there is none; the closure does not do what the rule asks; a number of the rule divides
                by 0, as with beta1=1: some parameters may have been updated then.
        """
        if any(group["evaluating"] for group in self.param_groups):
            raise ValueError(
                f"{self._name()}: the parameters are at the evaluation point; call opt.train() before opt.step()"
            )
        asks = self._asks
        if closure is None and asks.closure:
            raise ValueError(
                f"{self._name()} needs a closure: it asks for {asks.closure[0]}(...); call opt.step(closure)"
            )
        if examples is None and asks.examples:
            raise ValueError(
                f"{self._name()} needs the number of examples in the batch; call opt.step(closure, examples=len(x))"
            )
        if examples is not None and not examples > 0:
            raise ValueError(f"{self._name()}: examples is how many the loss is a mean over, not {examples}")
        loss = None
        if closure is not None and (asks.gradient or not asks.closure):
            with torch.enable_grad():
                loss = closure()
        everything = ((p, group) for group in self.param_groups for p in group["params"])
        work = [
            self._prepare(p, group, place, examples)
            for place, (p, group) in enumerate(everything)
            if p.numel() > 0 and (p.grad is not None if asks.gradient else p.requires_grad)
        ]
        answers = None
        if asks.closure and closure is not None:
            answers = Closure(
                self._name(),
                closure,
                [each.owner for each in work],
                takes_gradient=calls_backward(asks),
                maximize=[bool(each.numbers["maximize"]) for each in work],
                examples=examples,
            )
        depth = max((barrier.level + 1 for each in work for barrier, *_ in each.kind.shares), default=0)
        try:
            for level in range(depth):
                _exchange(level, work, answers)
            for each in work:
                each.update()
        except ZeroDivisionError as error:  # of Python's numbers: tensors have inf
            given = ({name: group[name] for name in self._program().defaults} for group in self.param_groups)
            raise ValueError(
                f"{self._name()}: a number of the rule divides by 0 with {' or '.join(map(str, given))}"
            ) from error
        if answers is not None:
            answers.release()
            loss = answers.loss if loss is None else loss
        return loss

    def _prepare(self, p: Tensor, group: dict[str, Any], place: int, examples: int | None) -> _Work:
        kind = self._kind(p, group["role"])
        state = self.state[p]
        if not state:
            state["step"] = 0
            state.update({slot.name: initial(slot, p, kind.code.matrix, group) for slot in kind.code.slots})
        grad = p if p.grad is None else p.grad.detach()  # a rule that takes no gradient reads none
        if grad.layout != torch.strided:
            raise ValueError(f"{self._name()} does not take sparse gradients; make the layer with sparse=False")
        work = _Work(kind, p, -grad if group["maximize"] else grad, state, group)
        work.numbers["place"], work.numbers["examples"] = place, examples
        return work

    def _kind(self, p: Tensor, role: str | None) -> _Kind:
        key = (p.shape, role)
        if key not in self._kinds:
            self._kinds[key] = _kind_of(self._program(), Facts.of(p.shape, role))
        return self._kinds[key]

    # The evaluation point -----------------------------------------------------------------------------------------

    def eval(self) -> None:
        """Puts the point to evaluate and save into the parameters; does nothing where the rule has one point."""
        self._swap(True)

    def train(self) -> None:
        """Puts the point to train from back into the parameters; does nothing where the rule has one point."""
        self._swap(False)

    @torch.no_grad()
    def _swap(self, evaluating: bool) -> None:
        for group in self.param_groups:
            if group["evaluating"] == evaluating:
                continue
            for p in group["params"]:
                slot = self._kind(p, group["role"]).code.evaluation
                if slot is not None and (state := self.state.get(p)):
                    other = state[slot].clone()
                    state[slot].copy_(p)
                    p.copy_(other)
            group["evaluating"] = evaluating and self._program().result is not None

    # Checkpoints --------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's own, which makes every state a float: codes are made codes again."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for p in group["params"]:
                for slot in self._kind(p, group["role"]).code.slots:
                    if slot.code and slot.name in self.state.get(p, ()):
                        self.state[p][slot.name] = self.state[p][slot.name].to(torch.uint8)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._kinds = {}
        self._asks = needs(self._program())
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("evaluating", False)


class _Kind:
    """The generated code for one kind of parameter, ready to call."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self.slots = [slot.name for slot in code.slots]
        self.shares = [(each, compiled(each.share), each.share.params[2:]) for each in code.barriers]
        self.update = compiled(code.update)
        self.params = code.update.params[2:]


@cache
def _kind_of(program: Program, facts: Facts) -> _Kind:
    return _Kind(generate(program, facts))


class _Work:
    """One parameter in one step.

    `p` is the parameter as the rule sees it, `owner` as the user does.
    """

    __slots__ = ("grad", "kind", "numbers", "owner", "p", "state", "target")

    def __init__(self, kind: _Kind, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        self.kind, self.p, self.grad, self.owner, self.state = kind, p, grad, p, state
        reference = group["reference_lr"]
        self.numbers: dict[str, Any] = {**group, "t": state["step"] + 1, "lr_ratio": 1.0}
        if "lr" in group and reference != 0:
            self.numbers["lr_ratio"] = group["lr"] / reference
        self.target: Tensor | None = None
        for name in kind.slots:
            self.numbers[name] = state[name]
        if not kind.code.matrix:
            return
        rows = p.shape[0] if p.ndim >= 2 else p.numel()
        shape = (rows, p.numel() // rows)
        for slot in kind.code.slots:
            if slot.extent == EXTENTS["full"]:
                self.numbers[slot.name] = state[slot.name].view(shape)
        self.grad = grad.reshape(shape)
        self.p = p.reshape(shape)
        if self.p.data_ptr() != p.data_ptr():  # its strides have no such view: update a copy
            self.target = p

    def shares(self, level: int) -> tuple[Barrier, Iterator[Any]] | None:
        """This parameter's shares of a level, if it has any."""
        for barrier, function, params in self.kind.shares:
            if barrier.level == level:
                return barrier, iter(function(self.p, self.grad, *[self.numbers[name] for name in params]))
        return None

    def update(self) -> None:
        """Takes the step, which counts from now on: a closure that failed before has changed nothing."""
        self.state["step"] += 1
        self.kind.update(self.p, self.grad, *[self.numbers[name] for name in self.kind.params])
        if self.target is not None:
            self.target.copy_(self.p.view(self.target.shape))


def _exchange(level: int, work: list[_Work], answers: Closure | None) -> None:
    """Joins what the parameters have to share, and asks what they have to ask, before they go on."""
    totals: dict[float, Any] = {}
    asked: dict[float, tuple[str, dict[int, list[Any]]]] = {}
    waiting = []
    for index, each in enumerate(work):
        if (found := each.shares(level)) is None:
            continue
        barrier, values = found
        waiting.append((index, each, barrier))
        for total in barrier.totals:
            if total.combine == "closure":
                asked.setdefault(total.place, (total.op, {}))[1][index] = [next(values) for _ in range(total.arity)]
                continue
            share, known = next(values), totals.get(total.place)
            if isinstance(share, Tensor):
                share = share.reshape(()) if total.scalar else share
                share = share if known is None else share.to(known.device)
            totals[total.place] = share if known is None else COMBINE[total.combine](known, share)
    found_answers = {place: _ask(op, given, len(work), answers) for place, (op, given) in asked.items()}
    for index, each, barrier in waiting:
        for total in barrier.totals:
            value = found_answers[total.place] if total.place in found_answers else totals[total.place]
            value = value[index] if isinstance(value, list) else value
            shaped = isinstance(value, Tensor) and total.combine == "closure" and not total.scalar
            each.numbers[total.name] = value.reshape(each.p.shape) if shaped else value


def _ask(op: str, given: dict[int, list[Any]], count: int, answers: Closure | None) -> Any:
    """An answer for all parameters; None where none needs it at this step."""
    asking = [values for values in given.values() if values[0] is not None]
    if not asking:
        return None
    assert answers is not None
    if any(values[1:] != asking[0][1:] for values in asking):
        raise ValueError(
            f"{answers.rule} asks {op}(...) for all parameters at once: its numbers, {asking[0][1:]}, must be "
            "the same in all groups"
        )
    return answers(op, [given.get(index, [None])[0] for index in range(count)], *asking[0][1:])


def initial(slot: Slot, p: Tensor, matrix: bool, hypers: Mapping[str, float]) -> Tensor:
    """A slot's first value: of p's shape where it is full, of the extent's sizes where p is treated as a matrix.

    Raises:
        ValueError: a hyperparameter that gives a size is no whole number from 1.
    """
    if slot.extent == EXTENTS["full"]:
        memory = torch.contiguous_format if matrix else torch.preserve_format
        if slot.init == "p":
            return p.detach().clone(memory_format=memory)
        assert not isinstance(slot.init, str)
        dtype = torch.uint8 if slot.code else p.dtype
        return torch.full_like(p, slot.init, memory_format=memory, dtype=dtype, requires_grad=False)
    if not matrix:
        assert not isinstance(slot.init, str)
        return p.new_full((), slot.init)
    rows = p.shape[0] if p.ndim >= 2 else p.numel()
    shape = [size_of(symbol, rows, p.numel() // rows, hypers) for symbol in slot.extent]
    if slot.init == "eye":
        return torch.eye(shape[0], dtype=p.dtype, device=p.device)
    assert not isinstance(slot.init, str)
    return p.new_full(shape, slot.init)


# Roles of a module's parameters -----------------------------------------------------------------------------------

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def module_groups(module: nn.Module) -> list[dict[str, Any]]:
    """A module's parameters as one group for each role, in order of appearance.

    An `nn.Embedding` gives `embedding`, a norm layer `norm`, any other bias `bias`, the last `nn.Linear`'s weight
    `head`, the rest `hidden` (two or more dimensions) or `vector`. A parameter that two layers share has the role that
    its first layer gives it.
    """
    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    groups: dict[str, dict[str, Any]] = {}
    seen: set[Tensor] = set()
    for layer in module.modules():
        for name, p in layer.named_parameters(recurse=False):
            if p in seen:
                continue
            seen.add(p)
            if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
                role = "embedding"
            elif isinstance(layer, _NORMS):
                role = "norm"
            elif name.endswith("bias") or name.startswith("bias"):
                role = "bias"
            elif linear and layer is linear[-1]:
                role = "head"
            else:
                role = "hidden" if p.ndim >= 2 else "vector"
            groups.setdefault(role, {"params": [], "role": role})["params"].append(p)
    return list(groups.values())


# Classes ----------------------------------------------------------------------------------------------------------


@cache
def class_of(program: Program) -> type[RuleOptimizer]:
    """The optimizer class of a program: one class for one program."""
    name = class_name(program.name)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter("params", kind, annotation=Iterable[Any] | nn.Module),
        *(inspect.Parameter(h.name, kind, default=h.default, annotation=float) for h in program.hypers),
        inspect.Parameter("maximize", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool),
    ]
    signature = inspect.Signature(parameters, return_annotation=None)
    made = _RuleClass(
        name,
        (RuleOptimizer,),
        {
            "program": program,
            "__doc__": program.doc,
            "__module__": "discover.optim",
            "__qualname__": name,
            "__signature__": signature,
        },
    )
    return cast(type[RuleOptimizer], made)


def class_name(rule: str) -> str:
    """The class name of a rule: `sgd_sai` is `SgdSai`."""
    return "".join(part.capitalize() for part in rule.split("_"))


def _reduce(cls: type[Any]) -> str | tuple[Any, ...]:
    program = vars(cls).get("program")
    return (class_of, (program,)) if program is not None else cls.__qualname__


copyreg.pickle(_RuleClass, _reduce)
