"""Values that many programs share: each is typed, simplified and named once.

A search changes its programs a little at a time, so nearly every value of a child is one of its parents' too. A `Pool`
is a builder (`dsl.graph`) that outlives a program and keeps beside each value what is known of it; a program that was
changed costs what its change costs. What comes out is what `dsl.graph.lower` and `dsl.simplify` give, and the tests
hold the two against each other.

Only straight lines are pooled: programs without static ifs and matrix operators, which are the same for every kind of
parameter. For the others `pooled` gives None, and graphs are made one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache

from dsl.flatten import flatten
from dsl.graph import INPUT, TOTALS, Builder, Key, Lowering, Node, passes
from dsl.ops import OPS, Op
from dsl.parse import definition
from dsl.program import Assign, Call, Expr, Facts, If, Name, Number, Program, RuleError, Slot, Statement, assignments
from dsl.simplify import ELEMENTWISE, Simplifier, table
from dsl.types import FULL, MismatchError, Type

LARGEST = 50_000
"""Values; then a new pool is begun, and the old one goes with the programs that are in it."""

_ANY = Facts(True, "hidden")
_DEFINING = ("t", "place")
"""Builtins that the definitions of operators read; a program that assigns one of them is not pooled."""


class Pool(Builder):
    """A builder that remembers, and the algebraic simplification of what is in it.

    Attributes:
        applied: an operator as a program writes it, with the positions of its arguments -> its value. Not those whose
            value depends on where they stand.
        starts: slots and hyperparameters of a program -> the names that it begins with.
        reads: for each value the inputs that it is made from, as bits; `bits` is the bit of each input's name.
    """

    def __init__(self) -> None:
        self.applied: dict[tuple[object, ...], int] = {}
        self.starts: dict[tuple[object, object], dict[str, int]] = {}
        self.reads: list[int] = []
        self.bits: dict[str, int] = {}
        self._constants: dict[float, int] = {}
        self._laws: dict[tuple[object, ...], Type] = {}
        """An operator and its arguments' types, by identity, which what is in the pool keeps -> its result's type."""
        self._simple: dict[int, int] = {}
        self._sized: dict[int, int] = {}
        self.costs: list[float] = []
        """For each value the passes over a matrix that it takes."""
        self.names: dict[tuple[tuple[str, str], ...], dict[int, str]] = {}
        """What inputs are called -> value -> its digest, for `dsl.canonical`."""
        self._simplifier: Simplifier | None = None
        super().__init__()

    def constant(self, value: float) -> int:
        found = self._constants.get(value) if value else None  # 0.0 and -0.0 are two constants and one key
        if found is None:
            found = super().constant(value)
            if value:
                self._constants[value] = found
        return found

    def apply(self, op: Op, args: tuple[int, ...], place: float | None = None) -> int:
        payload = place if op.combine else None
        key = (op.name, args, payload, None)
        found = self._index.get(key)
        if found is None:
            types = [self.nodes[arg].type for arg in args]
            kinds = (op.name, *map(id, types))
            law = self._laws.get(kinds)
            if law is None:
                law = self._laws[kinds] = op.law(*types)
            found = self._new(key, Node(op.name, args, payload, law))
        return found

    def _new(self, key: Key, node: Node) -> int:
        reads = self.bits.setdefault(str(node.payload), 1 << len(self.bits)) if node.op == INPUT else 0
        for arg in node.args:
            reads |= self.reads[arg]
        self.reads.append(reads)
        self.costs.append(passes(node, self.nodes))
        return super()._new(key, node)

    def simple(self, index: int) -> int:
        """The simplest known value that is the same up to algebra; as `dsl.simplify.simplify` finds it."""
        found = self._simple.get(index)
        if found is None:
            self._simplify(index)
            found = self._simple[index]
        return found

    def _simplify(self, index: int) -> None:
        node = self.nodes[index]
        simple = sized = index
        if node.args:
            for arg in node.args:
                self.simple(arg)
            if self._simplifier is None:
                self._simplifier = Simplifier(table(exact=False), {}, self)
            source = self._simple if node.op in ELEMENTWISE else self._sized
            simple = sized = self._simplifier.make(node.op, tuple([source[arg] for arg in node.args]), node.payload)
            type = self.nodes[simple].type
            if type is not node.type and type != node.type:
                sized = self._simplifier.plain(node, tuple([self._sized[arg] for arg in node.args]))
        self._simple[index], self._sized[index] = simple, sized

    def retire(self) -> None:
        """Lets go of what refers back to the pool, so that it is gone with the last program in it. A search looks for
        cycles among what is new alone: as part of one, pools of 50,000 values each would stay to its end."""
        self._simplifier = None


class Pooled:
    """A straight line in a pool.

    Attributes:
        pool: where its values are.
        outputs: "p", each slot, and "result" where the program returns another value -> position in the pool.
        reads: the inputs that the new p and the returned value depend on, by slots too, as bits.
    """

    __slots__ = ("_live", "outputs", "pool", "reads")

    def __init__(self, pool: Pool, outputs: Mapping[str, int]) -> None:
        self.pool, self.outputs = pool, outputs
        reads = pool.reads[outputs["p"]] | (pool.reads[outputs["result"]] if "result" in outputs else 0)
        waiting = [(pool.bits[name], pool.reads[index]) for name, index in outputs.items() if name != "result"]
        before = 0
        while reads != before:
            before = reads
            for bit, needed in waiting:
                if reads & bit:
                    reads |= needed
        self.reads = reads
        self._live: tuple[int, ...] = ()

    def depends_on(self, name: str) -> bool:
        return bool(self.reads & self.pool.bits.get(name, 0))

    def kept(self, slots: Sequence[Slot]) -> list[Slot]:
        """The slots that something depends on."""
        return [slot for slot in slots if self.depends_on(slot.name)]

    def live(self) -> tuple[int, ...]:
        """The values that the new p and the returned value depend on, by slots too, each after its arguments."""
        if not self._live:
            nodes, outputs = self.pool.nodes, self.outputs
            found: set[int] = set()
            waiting = [outputs[name] for name in outputs if name in ("p", "result") or self.depends_on(name)]
            while waiting:
                index = waiting.pop()
                if index not in found:
                    found.add(index)
                    waiting += nodes[index].args
            self._live = tuple(sorted(found))
        return self._live

    def simplified(self) -> Pooled:
        """The same up to algebra, simplified."""
        return Pooled(self.pool, {name: self.pool.simple(index) for name, index in self.outputs.items()})


class _MatrixError(Exception):
    """The program has matrix operators."""


class _Lowering(Lowering):
    """Lowers into a pool: a statement that was met before is looked up."""

    builder: Pool

    def begin(self) -> None:
        key = (self.program.slots, self.program.hypers)
        start = self.builder.starts.get(key)
        if start is None or self.program.rules:
            super().begin()
            start = self.builder.starts[key] = dict(self.env)
        self.env = dict(start)

    def block(self, body: tuple[Statement, ...], place: int) -> None:
        stored, nodes = {"p": FULL, **self.slots}, self.builder.nodes
        for number, statement in enumerate(body, start=place):
            assert isinstance(statement, Assign)
            target, self.line, self.place = statement.target, statement.line, float(number)
            found = None if target in self.defaults else self.met(statement.value)
            if found is None:
                self.assign(statement)
            elif target not in stored or (type := nodes[found].type) is stored[target] or type == stored[target]:
                self.env[target] = found
            else:
                self.store(target, found)

    def met(self, expr: Expr) -> int | None:
        """The value of an operator on names and literals, looked up, or made and kept; None for anything else."""
        if not isinstance(expr, Call) or expr.op not in _ANYWHERE:
            return None
        places: list[int] = []
        for arg in expr.args:
            if isinstance(arg, Number):
                places.append(self.builder.constant(arg.value))
            elif isinstance(arg, Name) and arg.id in self.env:
                places.append(self.env[arg.id])
            else:
                return None
        key = (expr.op, *places)
        found = self.builder.applied.get(key)
        if found is None:
            found = self.made(expr, tuple(places))
            if found is not None:
                self.builder.applied[key] = found
        return found

    def made(self, expr: Call, args: tuple[int, ...]) -> int | None:
        """An operator on values that are in the pool; None where it does not take such values."""
        op = OPS[expr.op]
        try:
            admitted = self.builder.admit(op, args)
            return self.expanded(op, args) if op.expand else self.builder.apply(op, admitted)
        except (MismatchError, RuleError):
            return None

    def expanded(self, op: Op, args: tuple[int, ...]) -> int:
        """What an operator abbreviates, its parameters being names of these values."""
        env = self.env
        self.env = {name: env[name] for name in _DEFINING} | dict(zip(op.params, args, strict=True))
        try:
            for part in _abbreviated(op.name):
                found = self.met(part.value)
                self.env[part.target] = value = self.lower(part.value) if found is None else found
            return value
        finally:
            self.env = env

    def lower(self, expr: Expr) -> int:
        if isinstance(expr, Call) and expr.op in _MATRIX:
            raise _MatrixError
        return super().lower(expr)


@cache
def _abbreviated(name: str) -> tuple[Assign, ...]:
    """What an operator stands for, its parameters as names: statements of one operator each."""
    whole = Assign("value", definition(OPS[name].expand)({}))
    return tuple(assignments(flatten(Program("", (), (), (whole,))).body))


_ANYWHERE = frozenset(op.name for op in OPS.values() if not (op.combine or op.name in TOTALS or op.matrix))
"""Operators whose value does not depend on where they stand in a program."""

_MATRIX = frozenset(op.name for op in OPS.values() if op.matrix)


def pooled(program: Program) -> Pooled | None:
    """The program in a pool, under whatever name; None if it has static ifs or matrix operators.

    Raises:
        RuleError: as `dsl.graph.lower`.
    """
    try:
        return _pooled(program if program.rules else program.unnamed)  # whose name is in what is said of it
    except RuleError as error:
        raise error.at(f"{program.name}.rule") from None


@lru_cache(maxsize=4096)
def _pooled(program: Program) -> Pooled | None:
    if any(isinstance(statement, If) or statement.target in _DEFINING for statement in program.body):
        return None
    pool = _pool()
    try:
        return Pooled(pool, _Lowering(program, _ANY, pool).outputs())
    except _MatrixError:
        return None


_POOLS = [Pool()]


def _pool() -> Pool:
    if len(_POOLS[0].nodes) > LARGEST:
        _POOLS[0].retire()
        _POOLS[0] = Pool()
        _pooled.cache_clear()  # a program that is met often would hold the whole of an old pool
    return _POOLS[0]
