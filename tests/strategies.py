"""Random programs for property tests: any syntax (`programs`), and well-typed ones that can be run (`rules`)."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from dsl.check import check
from dsl.ops import OPS
from dsl.parse import docstring_text
from dsl.program import (
    ROLES,
    And,
    Assign,
    Call,
    Expr,
    HasRole,
    Hyper,
    If,
    IsMatrix,
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
)
from dsl.types import EXTENTS

# Any syntax ---------------------------------------------------------------------------------------------------------

SLOTS = ("m", "v", "theta")
HYPERS = ("lr", "beta1", "eps")
TEMPORARIES = ("u", "x1", "momentum_")

numbers = st.one_of(
    st.integers(-(10**18), 10**18).map(float),
    st.floats(-1e299, 1e299, allow_nan=False),
    st.sampled_from([0.0, -0.0, 1e-8]),
)
names = st.sampled_from(["p", "g", "t", "lr_ratio", *SLOTS, *HYPERS, *TEMPORARIES])
docs = st.one_of(st.text(max_size=60), st.text(alphabet=' \n\t\x85\\"ab', max_size=30)).map(docstring_text)


def expressions(leaves: SearchStrategy[Expr]) -> SearchStrategy[Expr]:
    """Calls of any operator on any arguments."""

    def call(inner: SearchStrategy[Expr]) -> SearchStrategy[Expr]:
        return st.sampled_from(sorted(OPS)).flatmap(
            lambda name: st.tuples(*[inner] * len(OPS[name].params)).map(lambda args: Call(name, args))
        )

    return st.recursive(leaves, call, max_leaves=10)


static_tests: SearchStrategy[Test] = st.recursive(
    st.one_of(st.just(IsMatrix()), st.sampled_from(ROLES).map(HasRole)),
    lambda inner: st.one_of(
        inner.map(Not),
        st.lists(inner, min_size=2, max_size=3).map(lambda each: And(tuple(each))),
        st.lists(inner, min_size=2, max_size=3).map(lambda each: Or(tuple(each))),
    ),
    max_leaves=4,
)


def statements(expr: SearchStrategy[Expr]) -> SearchStrategy[Statement]:
    assign = st.builds(Assign, st.sampled_from(["p", "g", *SLOTS, *TEMPORARIES]), expr)

    def branch(inner: SearchStrategy[Statement]) -> SearchStrategy[Statement]:
        block = st.lists(inner, max_size=3).map(tuple)
        return st.builds(If, static_tests, block, block)

    return st.recursive(assign, branch, max_leaves=4)


@st.composite
def _ranges(draw: st.DrawFn) -> Range | None:
    if draw(st.booleans()):
        return None
    log = draw(st.booleans())
    low, high = sorted(
        draw(st.tuples(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9)).filter(lambda pair: pair[0] != pair[1]))
    )
    return Range(low if log else -low, high, log)


@st.composite
def _slots(draw: st.DrawFn, name: str) -> Slot:
    extent = draw(st.sampled_from(sorted(EXTENTS)))
    inits: list[SearchStrategy[float | str]] = [numbers, st.sampled_from([0.0, 1.0])]
    if extent in ("left", "right"):
        inits.append(st.just("eye"))
    if extent == "full":
        inits.append(st.just("p"))
    return Slot(name, EXTENTS[extent], draw(st.one_of(inits)))


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Any program that can be written down, ill-typed ones included; rules that take rules too."""
    rules = draw(st.sampled_from([(), ("base",)]))
    leaves: SearchStrategy[Expr] = st.one_of(numbers.map(Number), names.map(Name))
    expr = expressions(leaves)
    if rules:
        expr = st.one_of(expr, st.tuples(expr, expr).map(lambda args: Call("base", args)))
    return Program(
        name=draw(st.sampled_from(["rule", "adam_2", "f"])),
        slots=tuple(draw(_slots(name)) for name in SLOTS if draw(st.booleans())),
        hypers=tuple(Hyper(name, draw(numbers), draw(_ranges())) for name in HYPERS if draw(st.booleans())),
        body=tuple(draw(st.lists(statements(expr), min_size=1, max_size=5))),
        result=draw(st.sampled_from([None, "u", "m"])),
        rules=rules,
        doc=draw(docs),
    )


# Well-typed rules ---------------------------------------------------------------------------------------------------

_MAPS = ("neg", "abs", "sign", "square", "tanh", "sigmoid", "sqrt", "exp", "log", "rsqrt", "reciprocal")
_PAIRS = ("add", "sub", "mul", "div", "min", "max", "mod", "pow")
_REDUCTIONS = (
    "sum",
    "mean",
    "norm",
    "amax",
    "rms",
    "row_mean",
    "row_norm",
    "col_mean",
    "col_norm",
    "row_amax",
    "global_sum",
)
_literals = st.floats(-4, 4).map(lambda value: float(f"{value:.3g}"))


@st.composite
def _values(draw: st.DrawFn, tensors: tuple[str, ...], matrix: bool) -> Expr:
    """An expression of a value that broadcasts with the parameter, from one operator to three."""
    full = st.sampled_from(tensors).map(Name)
    operand = st.one_of(full, full, full, st.sampled_from(["t", "lr_ratio", "beta"]).map(Name), _literals.map(Number))
    match draw(st.sampled_from(["map", "pair", "pair", "lerp", "where", "clip", "reduce", "debias", "matrix"])):
        case "map":
            return Call(draw(st.sampled_from(_MAPS)), (draw(full),))
        case "lerp":
            return Call("lerp", (draw(full), draw(full), Call("sub", (Number(1.0), Name("beta")))))
        case "where":
            mask = Call(draw(st.sampled_from(["lt", "ge", "eq"])), (draw(operand), draw(operand)))
            return Call("where", (mask, draw(full), draw(operand)))
        case "clip":
            return Call("clip", (draw(full), Number(-1.0), Number(0.5)))
        case "reduce":
            scale = Call(draw(st.sampled_from(_REDUCTIONS)), (draw(full),))
            return Call("div", (draw(full), Call("add", (scale, Number(1e-3)))))
        case "debias":
            return Call("debias", (draw(full), Name("beta")))
        case "matrix" if matrix:
            product = Call("matmul", (draw(full), Call("transpose", (draw(full),))))
            return draw(
                st.sampled_from(
                    [Call("matmul", (product, draw(full))), Call("newton_schulz", (draw(full), Number(2.0)))]
                )
            )
    args = (draw(operand), draw(operand))
    return Call(draw(st.sampled_from(_PAIRS)), args)


@st.composite
def _lines(draw: st.DrawFn, slots: tuple[str, ...], matrix: bool, count: int) -> tuple[Assign, ...]:
    tensors: tuple[str, ...] = ("g", "p", *slots)
    lines = []
    for number in range(count):
        target = draw(st.sampled_from([f"y{number}", *slots]))
        value = draw(_values(tensors, matrix))
        if target in slots:
            value = Call("lerp", (Name(target), value, Number(0.1)))
        else:
            value = Call("add", (value, Call("mul", (Number(0.0), Name("g"))))) if draw(st.booleans()) else value
        lines.append(Assign(target, value))
        if target not in tensors and _is_full(value, tensors):
            tensors += (target,)
    direction = draw(st.sampled_from(tensors[::-1]))
    step = Call("mul", (Name("lr"), Call("add", (Name(direction), Call("mul", (Number(0.01), Name("g")))))))
    return (*lines, Assign("p", Call("sub", (Name("p"), step))))


def _is_full(value: Expr, tensors: tuple[str, ...]) -> bool:
    """Whether the value has the parameter's shape for certain."""
    if isinstance(value, Name):
        return value.id in tensors
    if not isinstance(value, Call) or value.op not in (*_MAPS, *_PAIRS, "lerp", "clip", "debias", "newton_schulz"):
        return False
    return any(_is_full(arg, tensors) for arg in value.args)


@st.composite
def rules(draw: st.DrawFn, static_ifs: bool = True) -> Program:
    """A well-formed rule with up to two slots, and at times a static if."""
    slots = draw(st.sampled_from([(), ("m",), ("m", "v")]))
    body: tuple[Statement, ...]
    if static_ifs and draw(st.booleans()):
        test = draw(st.sampled_from([IsMatrix(), And((IsMatrix(), Not(HasRole("head")))), Not(IsMatrix())]))
        positive = not isinstance(test, Not)
        then = draw(_lines(slots, positive, draw(st.integers(0, 2))))
        orelse = draw(_lines(slots, False, draw(st.integers(0, 2))))
        body = (If(test, then, orelse),)
    else:
        body = draw(_lines(slots, False, draw(st.integers(0, 4))))
    hypers = (Hyper("lr", 0.1), Hyper("beta", 0.9), Hyper("weight_decay", 0.0))
    program = Program("rule", tuple(Slot(name, EXTENTS["full"]) for name in slots), hypers, body)
    try:
        return check(program)
    except RuleError as error:  # pragma: no cover
        raise AssertionError(f"the strategy made an ill-typed rule: {error}\n{program}") from None
