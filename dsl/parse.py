"""Text to program: a rule file is a Python function that is parsed with `ast` and never executed."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable

from dsl.ops import INFIX, OPS
from dsl.program import (
    BUILTINS,
    LARGEST,
    ROLES,
    And,
    Assign,
    Call,
    Expr,
    HasRole,
    Hyper,
    If,
    IsMatrix,
    IsTall,
    Name,
    Not,
    Number,
    Or,
    Program,
    Range,
    RuleError,
    Slot,
    Statement,
    Test,
    map_names,
    misnamed,
)
from dsl.types import EXTENTS

_BINARY: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.MatMult: "@",
}
_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
_INITS: dict[str, float | str] = {"zeros": 0.0, "ones": 1.0, "eye": "eye", "p": "p"}
MAX_DEPTH = 60
"""How deep an expression may nest; deeper text is refused instead of exhausting the stack."""


def parse(text: str, filename: str = "<rule>") -> Program:
    """Reads one rule.

    Args:
        text: a rule file's text: one function, see docs/language.md.
        filename: for messages.

    Returns:
        The program, not yet checked for types (`dsl.check`).

    Raises:
        RuleError: "file:line: what was wrong; what was expected".
    """
    return _Parser(filename).program(text)


def docstring_text(docstring: str) -> str:
    """A docstring's text as programs hold it: without its indentation (PEP 257), spaces at the ends of lines and
    empty lines around it; `format` gives it back as it is."""
    return "\n".join(line.rstrip() for line in inspect.cleandoc(docstring).split("\n")).strip("\n")


def read_number(text: str) -> float | None:
    """The number that a text is, as in a rule's file; None for anything else."""
    try:
        return _literal(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def suggest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'sign'?" or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


class _Parser:
    def __init__(self, filename: str):
        self.filename = filename
        self.rules: tuple[str, ...] = ()

    def fail(self, node: ast.AST | int, message: str) -> RuleError:
        line = node if isinstance(node, int) else getattr(node, "lineno", 1)
        return RuleError(message, line, self.filename)

    # The function -------------------------------------------------------------------------------------------------

    def program(self, text: str) -> Program:
        try:
            module = ast.parse(text)
        except SyntaxError as error:
            raise self.fail(error.lineno or 1, f"not Python syntax: {error.msg}") from None
        except ValueError as error:
            raise self.fail(1, f"not a rule: {error}") from None
        except (RecursionError, MemoryError):
            raise self.fail(1, f"not a rule: nested deeper than {MAX_DEPTH}") from None
        for node in module.body:
            if not isinstance(node, ast.FunctionDef):
                raise self.fail(
                    node, f"{_kind(node)} is not allowed; a rule file is one function 'def NAME(p, g, ...):'"
                )
        if len(module.body) != 1:
            raise self.fail(1, f"a rule file is one function 'def NAME(p, g, ...):', this has {len(module.body)}")
        function = module.body[0]
        assert isinstance(function, ast.FunctionDef)
        if function.decorator_list or function.returns or function.args.vararg or function.args.kwarg:
            raise self.fail(function, "decorators, '->', * and ** arguments are not part of the language")
        slots = self.arguments(function)
        hypers = tuple(
            self.hyper(arg, default)
            for arg, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
        )
        body = list(function.body)
        doc = ""
        if (
            isinstance(first := body[0], ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            doc = docstring_text(first.value.value)
            body = body[1:]
        result = None
        if body and isinstance(last := body[-1], ast.Return):
            if not isinstance(last.value, ast.Name):
                raise self.fail(last, "return takes one name: the value to evaluate where it is not p")
            result = last.value.id
            body = body[:-1]
        if not body:
            raise self.fail(function, f"rule '{function.name}' has no statements; it must assign p")
        if wrong := misnamed(slots, hypers, self.rules):
            name, message = wrong
            declared = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            raise self.fail([arg for arg in declared if arg.arg == name][-1], message)
        return Program(function.name, slots, hypers, self.block(body), result, self.rules, doc)

    def arguments(self, function: ast.FunctionDef) -> tuple[Slot, ...]:
        args = [*function.args.posonlyargs, *function.args.args]
        if [arg.arg for arg in args[:2]] != ["p", "g"] or any(arg.annotation for arg in args[:2]):
            raise self.fail(
                function, f"the first two arguments of '{function.name}' must be p and g (parameter, gradient)"
            )
        if function.args.defaults:
            raise self.fail(
                function, "state has its initial value as annotation (m: zeros); hyperparameters go after '*'"
            )
        slots = []
        rules = []
        for arg in args[2:]:
            if isinstance(arg.annotation, ast.Name) and arg.annotation.id == "rule":
                rules.append(arg.arg)
            else:
                slots.append(self.slot(arg))
        self.rules = tuple(rules)
        return tuple(slots)

    def slot(self, arg: ast.arg) -> Slot:
        expected = "expected zeros, like(p), rows(zeros), cols(zeros), left(eye), right(eye) or scalar(0)"
        extent, init = "full", arg.annotation
        if isinstance(init, ast.Call) and isinstance(init.func, ast.Name) and len(init.args) == 1 and not init.keywords:
            extent, init = init.func.id, init.args[0]
        if extent == "like":
            extent = "full"
            if not (isinstance(init, ast.Name) and init.id == "p"):
                raise self.fail(arg, f"state '{arg.arg}': like takes p; {expected}")
        if extent == "codes":
            if init is not None and (number := _literal(init)) is not None:
                return Slot(arg.arg, EXTENTS["full"], number, code=True)
            raise self.fail(arg, f"state '{arg.arg}': codes start as a number, codes(0)")
        if extent not in EXTENTS:
            raise self.fail(arg, f"state '{arg.arg}': unknown extent '{extent}'{suggest(extent, EXTENTS)}; {expected}")
        if isinstance(init, ast.Name) and init.id in _INITS:
            value = _INITS[init.id]
            if value == "eye" and extent not in ("left", "right"):
                raise self.fail(arg, f"state '{arg.arg}': eye needs a square extent, left(eye) or right(eye)")
            if value == "p" and extent != "full":
                raise self.fail(arg, f"state '{arg.arg}': a copy of p has p's extent, like(p)")
            return Slot(arg.arg, EXTENTS[extent], value)
        if init is not None and (number := _literal(init)) is not None:
            return Slot(arg.arg, EXTENTS[extent], number)
        raise self.fail(arg, f"state '{arg.arg}' needs its shape and initial value as annotation; {expected}")

    def hyper(self, arg: ast.arg, default: ast.expr | None) -> Hyper:
        value = _literal(default) if default is not None else None
        if value is None:
            raise self.fail(arg, f"hyperparameter '{arg.arg}' needs a number as default, for example {arg.arg}=0.9")
        return Hyper(arg.arg, value, self.range(arg) if arg.annotation else None)

    def range(self, arg: ast.arg) -> Range:
        node = arg.annotation
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("log", "linear")
            and len(node.args) == 2
        ):
            low, high = (_literal(each) for each in node.args)
            log = node.func.id == "log"
            if low is not None and high is not None and low < high and (low > 0 or not log):
                return Range(low, high, log)
        raise self.fail(
            arg,
            f"hyperparameter '{arg.arg}': a range is log(low, high), low > 0, or linear(low, high)",
        )

    # Statements ---------------------------------------------------------------------------------------------------

    def block(self, nodes: list[ast.stmt]) -> tuple[Statement, ...]:
        return tuple(
            statement for node in nodes if not isinstance(node, ast.Pass) for statement in self.statement(node)
        )

    def statement(self, node: ast.stmt) -> tuple[Statement, ...]:
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value):
                if target in BUILTINS or target in OPS:
                    raise self.fail(node, f"'{target}' is built in and cannot be assigned")
                return (Assign(target, self.expression(value), node.lineno),)
            case ast.AugAssign(target=ast.Name(id=target), op=op, value=value) if type(op) in _BINARY:
                return (
                    Assign(
                        target, Call(INFIX[_BINARY[type(op)]].name, (Name(target), self.expression(value))), node.lineno
                    ),
                )
            case ast.If(test=test, body=body, orelse=orelse):
                return (If(self.test(test), self.block(body), self.block(orelse), node.lineno),)
            case ast.Return():
                raise self.fail(node, "return is only allowed as the last statement")
            case ast.Assign():
                raise self.fail(node, "an assignment has one name on its left: name = expression")
        raise self.fail(node, f"{_kind(node)} is not allowed; a rule is assignments and static ifs")

    def test(self, node: ast.expr, depth: int = 0) -> Test:
        if depth > MAX_DEPTH:
            raise self.fail(node, f"test nested deeper than {MAX_DEPTH}")
        match node:
            case ast.Call(func=ast.Name(id="matrix"), args=[ast.Name(id="p")], keywords=[]):
                return IsMatrix()
            case ast.Call(func=ast.Name(id="tall"), args=[ast.Name(id="p")], keywords=[]):
                return IsTall()
            case ast.Call(func=ast.Name(id="role"), args=[ast.Constant(value=str(role))], keywords=[]):
                if role not in ROLES:
                    raise self.fail(node, f"unknown role '{role}'{suggest(role, ROLES)}; roles are {', '.join(ROLES)}")
                return HasRole(role)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return Not(self.test(operand, depth + 1))
            case ast.BoolOp(op=ast.And(), values=values):
                return And(tuple(self.test(value, depth + 1) for value in values))
            case ast.BoolOp(op=ast.Or(), values=values):
                return Or(tuple(self.test(value, depth + 1) for value in values))
        raise self.fail(
            node,
            "an if may ask only matrix(p), tall(p), role('head'), and, or, not: what is known before training; "
            "for values use where(mask, a, b)",
        )

    # Expressions --------------------------------------------------------------------------------------------------

    def expression(self, node: ast.expr, depth: int = 0) -> Expr:
        if depth > MAX_DEPTH:
            raise self.fail(node, f"expression nested deeper than {MAX_DEPTH}; name its parts")
        if (number := _literal(node)) is not None:
            return Number(number)
        match node:
            case ast.Name(id=id):
                return Name(id)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return Call("neg", (self.expression(operand, depth + 1),))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return Call(
                    INFIX[_BINARY[type(op)]].name, (self.expression(left, depth + 1), self.expression(right, depth + 1))
                )
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
                return Call(
                    INFIX[_COMPARE[type(op)]].name,
                    (self.expression(left, depth + 1), self.expression(right, depth + 1)),
                )
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return self.call(node, name, tuple(self.expression(arg, depth + 1) for arg in args))
            case ast.Call(func=ast.Name(id=name)):
                raise self.fail(node, f"{name}: arguments are given by position, without keywords")
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                raise self.fail(node, f"a literal must be smaller than {LARGEST:g}")
            case ast.Constant(value=value):
                raise self.fail(node, f"{value!r} is not a number")
            case ast.Call(func=ast.Attribute() as attribute):
                node = attribute
        raise self.fail(node, f"{_kind(node)} is not allowed in an expression; use operators and arithmetic")

    def call(self, node: ast.AST, name: str, args: tuple[Expr, ...]) -> Expr:
        if name in self.rules:
            if len(args) != 2:
                raise self.fail(
                    node, f"{name}(p, g): a rule takes a parameter and a gradient, this gives {len(args)} arguments"
                )
            return Call(name, args)
        if name not in OPS:
            raise self.fail(node, f"unknown operator '{name}'{suggest(name, OPS)}")
        op = OPS[name]
        if len(args) != len(op.params):
            raise self.fail(
                node, f"{name}({', '.join(op.params)}) takes {len(op.params)} arguments, this gives {len(args)}"
            )
        return Call(name, args)


def _literal(node: ast.expr) -> float | None:
    """The value of a finite numeric literal, with or without a minus; None for anything else."""
    match node:
        case ast.Constant(value=bool()):
            return None
        case ast.Constant(value=int() | float() as value) if abs(value) < LARGEST:
            return float(value)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() as operand):
            positive = _literal(operand)
            return None if positive is None else -positive
    return None


_KINDS = {
    "Import": "an import",
    "ImportFrom": "an import",
    "For": "a loop",
    "While": "a loop",
    "Attribute": "an attribute (a.b)",
    "Subscript": "indexing (a[b])",
    "Lambda": "a lambda",
    "NamedExpr": "':='",
    "Delete": "del",
    "ClassDef": "a class",
    "AsyncFunctionDef": "an async function",
    "IfExp": "a conditional expression (use where(mask, a, b))",
    "BoolOp": "and / or (outside a static if)",
    "Compare": "a chained comparison",
    "Call": "calling anything but an operator",
}


def _kind(node: ast.AST) -> str:
    name = type(node).__name__
    return _KINDS.get(name, f"'{name}'")


def definition(expansion: str) -> Callable[[dict[str, Expr]], Expr]:
    """An operator's `expand` text as a function from its arguments to an expression."""
    body = _Parser("<operator>").expression(ast.parse(expansion, mode="eval").body)
    return lambda arguments: map_names(body, lambda name: arguments.get(name, Name(name)))
