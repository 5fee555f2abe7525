"""From a graph to ordered statements: what is computed where, in which order, and what is written in place.

A value that is used once is part of the statement that uses it; others get a local name, or live in the storage of a
slot or of p: the last reader of a slot's old value overwrites it. A number condition becomes a Python `if`, and a value
that only one branch needs is computed in that branch.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from dsl.codegen_expressions import UNARY, Atom, Call, Expr, Expressions, Fill, Fn, Num, parts, size
from dsl.codegen_values import Guard
from dsl.graph import INPUT, Graph
from dsl.ops import OPS
from dsl.types import EXTENTS, Extent

_FULL, _SCALAR = EXTENTS["full"], EXTENTS["scalar"]


@dataclass(slots=True)
class Statement:
    """One value computed, or one storage written.

    Attributes:
        value: what it defines, if anything.
        store: the storage (p or a slot) that it writes, if any.
        expr: what is computed; a bare name with a storage says that the value is there already.
        copy: whether the storage is overwritten from outside rather than in place.
        overwrites: the values that were in the storage before.
        guard: when it runs.
    """

    value: int | None
    store: str | None
    expr: Expr
    guard: Guard
    order: float
    copy: bool = False
    overwrites: frozenset[int] = frozenset()
    reads: Counter[int] = field(default_factory=Counter)


def _repeats(op: str, position: int) -> bool:
    """Whether an operator's spelling names an argument more than once."""
    spelling = OPS[op].torch if op in OPS else ""
    return isinstance(spelling, str) and spelling.count(f"{{{position}}}") > 1


class Plan(Expressions):
    """Statements for some outputs of a graph, in order; arguments as for `Expressions`.

    A plan with results writes nothing in place. `when` says under which choices by numbers (positions in the graph) a
    result is needed, where that is not always. Without `statements` there are guards and nothing else.
    """

    def __init__(
        self,
        graph: Graph,
        outputs: Mapping[str, int],
        *,
        external: Mapping[int, str] | None = None,
        lanes: bool = False,
        per_lane: frozenset[str] = frozenset(),
        results: Sequence[int] = (),
        when: Mapping[int, Sequence[tuple[int, bool]]] | None = None,
        statements: bool = True,
    ) -> None:
        super().__init__(graph, outputs, external=external, lanes=lanes, per_lane=per_lane, results=results)
        self.hints: dict[int, str] = dict(graph.hints)
        self.default_names: dict[int, str] = {}
        self.when: dict[int, Guard] = {
            index: tuple((self.number(mask), holds) for mask, holds in choices)
            for index, choices in (when or {}).items()
        }
        self._find_guards()
        if not statements:
            return
        self.fixed: set[str] = set()
        """Storages that are written by a copy at the end, as writing in place would contradict the order of reads."""
        self.buffered: set[str] = set()
        """Those of them whose new value is put aside first, as when two slots change places."""
        while True:
            self._find_homes()
            self.statements: list[Statement] = []
            self.synthetic = len(self.nodes)
            self.aliases: dict[int, list[int]] = {}
            self._build()
            if self._order():
                break

    # Guards and homes ---------------------------------------------------------------------------------------------

    def _find_guards(self) -> None:
        self.guards: dict[int, Guard] = dict.fromkeys(self.outputs.values(), ())
        for index in self.results:
            self.guards[index] = self.when.get(index, ())
        for index in sorted(self.live, reverse=True):
            mine = self.guards[index]
            for arg, condition in self.users(index):
                if self.is_number[arg]:
                    continue
                guard = mine + tuple(each for each in condition if each not in mine)
                if arg in self.guards:
                    pairs = zip(self.guards[arg], guard, strict=False)
                    guard = tuple(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
                self.guards[arg] = guard

    def _receivers(self, index: int) -> list[int]:
        """Values over which it could be computed in place."""
        node = self.nodes[index]
        if self.leaf(index) or self.is_number[index]:
            return []
        if self.lazy(index):
            found = [value for value, _ in self.branches(index)]
            return sorted(found, key=lambda value: not self.leaf(value))
        if node.op in ("add", "sub", "neg"):
            found = [term.x for term in self.terms(index) if term.kind == "" and term.x is not None]
        elif node.op in ("mul", "div"):
            found = [self.strip(index)[1]]
            if found == [index]:
                found = [self.strip(arg)[1] for arg in node.args[: 2 if node.op == "mul" else 1]]
        elif node.op in ("min", "max"):
            found = list(node.args)
        elif node.op in UNARY or node.op in ("lerp", "clip", "pow", "mod"):
            found = [node.args[0]]
        else:
            return []
        return [each for each in found if not self.is_number[each] and self.nodes[each].type == node.type]

    def _find_homes(self) -> None:
        """Decides which values live in the storage of p or of a slot, and over which value each is computed there."""
        self.home: dict[int, str] = {}
        self.base: dict[int, int] = {}
        for store, index in self.outputs.items():
            if store in self.fixed or self.results:
                continue
            found: dict[int, int] = {}
            if self._path(index, store, found, set()):
                for value, under in found.items():
                    self.base[value] = under
                    self.home[value] = store
        for index, node in enumerate(self.nodes):
            if node.op == INPUT and str(node.payload) in self.outputs:
                self.home[index] = str(node.payload)

    def _path(self, index: int, store: str, found: dict[int, int], seen: set[int]) -> bool:
        node = self.nodes[index]
        if node.op == INPUT:
            return node.payload == store
        if index in seen or index in self.home:
            return index in found
        seen.add(index)
        for under in self._receivers(index):
            if not self._path(under, store, found, seen):
                continue
            found[index] = under
            if not self.lazy(index):
                return True
            condition = self.number(node.args[0])
            for other, holds in self.branches(index):  # the other branch may be computed there too, if only it needs it
                if other != under and (condition, holds) in self.guards.get(other, ()):
                    self._path(other, store, found, seen)
            return True
        return False

    # Statements ---------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        for index in sorted(self.live):
            if self.leaf(index) or self.is_number[index] or self.inline(index):
                continue
            if self.lazy(index):
                self._choose(index)
            else:
                self._define(index, self.expr(index, top=True), self.home.get(index), self.guards[index], index)
        for store, index in self.outputs.items():
            node = self.nodes[index]
            if node.op == INPUT and node.payload == store:
                continue
            if self.home.get(index) == store and self.inline(index):
                self._define(index, self.expr(index, top=True), store, (), index)
            if self.home.get(index) != store:
                self._copy(store, self.expr(index), (), len(self.nodes) + index)

    def _define(self, value: int, expr: Expr, store: str | None, guard: Guard, order: float) -> None:
        start = self._start(expr)
        inside = isinstance(start, Atom) and store is not None and self.home.get(start.value) == store
        if store is not None and not inside:  # it turned out not to start from what is in the storage
            store = None
            self.home.pop(value, None)
            if self.inline(value):
                return
        overwritten = start.value if inside and isinstance(start, Atom) else None
        self._settle(expr, guard, order, overwritten, store)
        over = frozenset(() if overwritten is None else (overwritten,))
        self._add(Statement(value, store, expr, guard, order, overwrites=over))

    def _copy(self, store: str, expr: Expr, guard: Guard, order: float) -> None:
        if store in self.buffered and not isinstance(expr, Num):
            expr = self._named(expr, guard, order, -1, force=True)
        self._settle(expr, guard, order, None)
        old = {index for index, home in self.home.items() if home == store} | self._old(store)
        self._add(Statement(None, store, expr, guard, order, copy=True, overwrites=frozenset(old)))

    def _old(self, store: str) -> set[int]:
        return {i for i, node in enumerate(self.nodes) if node.op == INPUT and node.payload == store}

    def _below(self, index: int, store: str) -> frozenset[int]:
        """The values that lie in a storage before this one does."""
        below: set[int] = set()
        stack = [index]
        while stack:
            value = stack.pop()
            under = [self.base[value]] if value in self.base else []
            if self.nodes[value].op == "where" and self.lazy(value):
                under += [each for each, _ in self.branches(value) if self.home.get(each) == store]
            stack += [each for each in under if each not in below]
            below.update(under)
        return frozenset(below - {index})

    def _choose(self, index: int) -> None:
        """A choice by a number: at most one statement for each branch."""
        condition = self.number(self.nodes[index].args[0])
        extent = self.nodes[index].type.extent
        store = self.home.get(index)
        under = self.base.get(index)
        resident = under
        while resident is not None and self.inline(resident):
            resident = self.base.get(resident)
        if store is None:
            self.aliases[index] = []
        for value, holds in self.branches(index):
            guard = (*self.guards[index], (condition, holds))
            expr = self.expr(value)
            if store is None:
                expr = self._spread(expr, extent)
                self._settle(expr, guard, index, None)
                self.aliases[index] += [each.value for each in parts(expr) if isinstance(each, Atom)]
                self._add(Statement(index, None, expr, guard, index))
            elif isinstance(expr, Atom) and self.home.get(value) == store and (value in self.base or value == resident):
                self._add(Statement(index, store, expr, guard, index))
            else:
                start = self._start(expr)
                if isinstance(start, Atom) and self.home.get(start.value) == store and not isinstance(expr, Atom):
                    self._settle(expr, guard, index, start.value)
                    self._add(Statement(index, store, expr, guard, index, overwrites=frozenset({start.value})))
                else:
                    self._settle(expr, guard, index, None)
                    self._add(
                        Statement(index, store, expr, guard, index, copy=True, overwrites=self._below(index, store))
                    )

    def _spread(self, expr: Expr, extent: Extent) -> Expr:
        """The same value in every place of a larger extent: what reads it may count its rows and columns."""
        if isinstance(expr, Num):
            expr = Fill(expr.number, extent if extent == _FULL else _SCALAR)
        if expr.extent == extent:
            return expr
        return Fn("expand", [expr, *(Num(self.length(symbol)) for symbol in extent)], extent)

    def _start(self, expr: Expr) -> Expr:
        while isinstance(expr, Call) and self._receiver_fits(expr):
            expr = expr.receiver
        return expr

    def _receiver_fits(self, call: Call) -> bool:
        return isinstance(call.receiver, Fill | Num) or call.receiver.extent == call.extent

    def _settle(
        self, expr: Expr, guard: Guard, order: float, overwritten: int | None, store: str | None = None
    ) -> None:
        """Gives a name to arguments that are too long to stand inside, or that must be read before the first write."""
        if isinstance(expr, Fn):
            for position, arg in enumerate(expr.args):
                divisor = expr.op == "div" and position == 1
                limit = 0 if _repeats(expr.op, position) else 2
                expr.args[position] = self._named(arg, guard, order, limit, "denom" if divisor else "")
        while isinstance(expr, Call):
            first = isinstance(expr.receiver, Atom)
            for position, arg in enumerate(expr.args):
                divisor = expr.method == "addcdiv" and position == 1
                reads = any(isinstance(each, Atom) and each.value == overwritten for each in parts(arg))
                limit = 0 if divisor or (reads and not first) else 1
                name = "denom" if divisor or expr.method == "div" else "u" if store == "p" else ""
                expr.args[position] = self._named(arg, guard, order, limit, name, reads and not first)
            expr = expr.receiver
            if isinstance(expr, Fn):
                self._settle(expr, guard, order, overwritten, store)

    def _named(self, expr: Expr, guard: Guard, order: float, limit: int, name: str = "", force: bool = False) -> Expr:
        if isinstance(expr, Num) or (isinstance(expr, Atom) and not force):
            return expr
        if isinstance(expr, Atom):
            expr = Call("clone", expr, [], {}, expr.extent)
        if size(expr) <= limit and not force and not self._hinted(expr):
            self._settle(expr, guard, order, None)
            return expr
        value = expr.value if isinstance(expr, Call | Fn) and expr.value is not None else None
        if value is None or any(statement.value == value for statement in self.statements):
            value, self.synthetic = self.synthetic, self.synthetic + 1
        if name:
            self.default_names.setdefault(value, name)
        extent = expr.extent if not isinstance(expr, Num) else _FULL
        self.home.pop(value, None)
        self._define(value, expr, None, guard, order - 0.5)
        return Atom(value, extent)

    def _hinted(self, expr: Expr) -> bool:
        """Whether the program itself gives it a name."""
        return isinstance(expr, Call | Fn) and expr.value in self.hints and size(expr) > 1

    def _add(self, statement: Statement) -> None:
        reads = Counter(each.value for each in parts(statement.expr) if isinstance(each, Atom))
        statement.reads = reads
        self.statements.append(statement)

    # Order --------------------------------------------------------------------------------------------------------

    def _order(self) -> bool:
        """Sorts so that values come before their readers, and readers before what overwrites them.

        Returns False, one more storage then being written by a copy at the end, where the two contradict.
        """
        statements = self.statements
        defines: dict[int, list[int]] = {}
        readers: dict[int, list[int]] = {}
        for position, statement in enumerate(statements):
            if statement.value is not None:
                defines.setdefault(statement.value, []).append(position)
            for value in self._reached(statement):
                readers.setdefault(value, []).append(position)
        before: list[set[int]] = [set() for _ in statements]
        for position, statement in enumerate(statements):
            for value in self._reached(statement):
                before[position].update(defines.get(value, []))
            for value in statement.overwrites:
                before[position].update(readers.get(value, []))
                before[position].update(defines.get(value, []))
            before[position].discard(position)
            if statement.overwrites and statement.value is not None:
                before[position] -= set(defines[statement.value])
        after: list[list[int]] = [[] for _ in statements]
        missing = [len(each) for each in before]
        for position, earlier in enumerate(before):
            for each in earlier:
                after[each].append(position)
        ready = [(statements[i].order, i) for i, count in enumerate(missing) if not count]
        heapq.heapify(ready)
        ordered: list[int] = []
        while ready:
            guard = statements[ordered[-1]].guard if ordered else ()
            same = [each for each in ready if guard and statements[each[1]].guard == guard]
            chosen = min(same) if same else ready[0]
            ready.remove(chosen)
            heapq.heapify(ready)
            ordered.append(chosen[1])
            for each in after[chosen[1]]:
                missing[each] -= 1
                if not missing[each]:
                    heapq.heappush(ready, (statements[each].order, each))
        if len(ordered) == len(statements):
            self.statements = [statements[i] for i in ordered]
            return True
        stuck = set(range(len(statements))) - set(ordered)
        stores = [s.store for i, s in enumerate(statements) if i in stuck and s.store]
        for given_up in (self.fixed, self.buffered):
            if left := [store for store in stores if store not in given_up]:
                given_up.add(left[-1])
                return False
        raise AssertionError("statements that wait for each other without writing anything")

    def _reached(self, statement: Statement) -> set[int]:
        """The values it reads, those included that a name it reads may stand for."""
        reached: set[int] = set()
        stack = list(statement.reads)
        while stack:
            value = stack.pop()
            if value not in reached:
                reached.add(value)
                stack.extend(self.aliases.get(value, ()))
        return reached
