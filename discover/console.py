"""What a person sees: live progress, the leaderboard, the funnel, where the time went. Reads events and rows only."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

import dsl
from discover.budget import UNLIMITED, Budget
from discover.durations import format_duration
from discover.events import Event, Finished, GenerationDone, Notice, Started
from discover.front import costs
from discover.length import length
from discover.records import Ranked, Totals
from dsl.flatten import tidy
from dsl.format import format_expr, format_test
from dsl.identify import nearest
from dsl.program import If, Program, RuleError, Statement

EVERY_SECONDS = 10.0
"""How often progress is printed where lines cannot be drawn over."""

EXCESS = 1.1
"""What takes more than so many times its time says that, and why."""


class ProgressView:
    """Consumes a search's events: a block of lines that is drawn over on a terminal, plain lines anywhere else."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._started: Started | None = None
        self._said = -EVERY_SECONDS

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def show(self, event: Event) -> None:
        match event:
            case Started():
                self._started = event
                for line in started_lines(event):
                    self.console.print(line, highlight=False, soft_wrap=True)
            case Notice(text):
                self.console.print(escape(text), style="yellow", highlight=False, soft_wrap=True)
            case GenerationDone():
                lines = list(self._progress(event))
                if self._live:
                    self._live.update(Text("\n".join(lines)))
                elif event.elapsed - self._said >= EVERY_SECONDS or event.record.number == 0:
                    self._said = event.elapsed
                    self.console.print("  ".join(lines), highlight=False, markup=False, soft_wrap=True)
            case Finished():
                pass

    def _progress(self, event: GenerationDone) -> Iterator[str]:
        started, totals = self._started, event.totals
        left = ""
        budget = started.budget if started else UNLIMITED
        if budget.seconds is not None:
            left = f", {format_duration(max(budget.seconds - event.elapsed, 0.0))} left"
        elif budget.candidates is not None:
            left = f", {max(budget.candidates - totals.trained, 0)} candidates left"
        yield (
            f"{format_duration(event.elapsed):>6}  generation {event.record.number}: {totals.proposed} proposed,"
            f" {totals.trained} trained{f', front of {event.front}' if event.front > 1 else ''}{left}"
        )
        if event.best is not None:
            yield f"best {fitness(event.best)}: {one_line(event.best.candidate.text)}"


def started_lines(event: Started) -> Iterator[str]:
    """What is about to happen, in two or three lines."""
    where = f"{event.workers} worker{'s' if event.workers != 1 else ''}" if event.workers else "this process"
    where = "all workers that the cluster has room for" if event.workers is None else where
    limit = " and ".join(event.budget.words()) or "no limit"
    yield f"{event.algorithm} in space {event.space}, seed {event.seed}, on {where}, {limit}"
    compiled = [task for task, start in event.compiled_from.items() if start is not None]
    eager = [task for task, start in event.compiled_from.items() if start is None]
    if event.compiled_from:
        yield f"gradients: compiled {', '.join(compiled) or 'none'}; eager {', '.join(eager) or 'none'}"
    if event.generations:
        yield f"goes on after {event.generations} generations"


# Rules and numbers in a line ----------------------------------------------------------------------------------------


def one_line(text: str | Program, width: int = 100) -> str:
    """A rule's statements in one line, as a person would write them."""
    program = tidy(dsl.parse(text) if isinstance(text, str) else text)
    line = _in_line(program.body)
    return line if len(line) <= width else f"{line[: width - 3]}..."


def _in_line(body: tuple[Statement, ...]) -> str:
    parts = []
    for each in body:
        if isinstance(each, If):
            orelse = f" else {{{_in_line(each.orelse)}}}" if each.orelse else ""
            parts.append(f"if {format_test(each.test)} {{{_in_line(each.body)}}}{orelse}")
        else:
            parts.append(f"{each.target} = {format_expr(each.value)}")
    return "; ".join(parts)


def fitness(ranked: Ranked) -> str:
    """ "+0.041 ±0.008 (8)", or "+0.041 not confirmed": in brackets, how many fresh evaluations."""
    if ranked.fitness is None:
        return "none"
    if ranked.confirmation is None:
        return f"{ranked.fitness:+.3f} not confirmed"
    error, count = ranked.confirmation.error, ranked.confirmation.count
    return f"{ranked.fitness:+.3f}{'' if error is None else f' ±{error:.3f}'} ({count})"


def resemblance(program: Program) -> str:
    """The nearest known rule, in a few words."""
    try:
        match = nearest(program)
    except RuleError as error:
        return f"cannot be compared: {error}"
    if match.exact:
        values = ", ".join(f"{name}={value:g}" for name, value in match.hypers.items())
        return f"is {match.name}" + (f" ({values})" if values else "")
    if match.but_for_decay:
        return f"{match.name} but for weight decay"
    return f"{match.name} {min(match.similarity, 0.999):.3f}"


# Tables -------------------------------------------------------------------------------------------------------------


FEW = 5
"""Of those that are not confirmed, on a screen."""

_FRONT = "{:>30}  {:>5}  {:>6}  {}"
_PLACE = "{:>4}  {:<24}  {:>5}  {:>6}  {}"


def leaderboard(places: Sequence[Ranked], width: int = 80) -> Iterator[str]:
    """Rank, fitness against tuned AdamW, memory, length and nearest known rule; below them the rule itself."""
    if not places:
        yield "nothing was trained"
        return
    yield _PLACE.format("rank", "fitness", "bytes", "length", "nearest known rule")
    for ranked in places:
        program = dsl.parse(ranked.candidate.text)
        size = _number(ranked.candidate.properties.get("state_bytes"))
        yield _PLACE.format(ranked.rank, fitness(ranked), size, length(program), resemblance(program))
        yield from textwrap.wrap(
            one_line(program, 1000), max(width, 40), initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    yield "fitness: mean log(loss of tuned AdamW / loss) on fresh instances, ± its standard error (how many of them);"
    yield "above 0 is better. bytes: of state a parameter. length: in statements of one operator."


def front_lines(event: Finished) -> Iterator[str]:
    """What costs less and is less fit, where there is any such choice."""
    if len(event.front) < 2:
        return
    confirmed = [each for each in event.front if each.confirmation]
    others = [each for each in event.front if not each.confirmation]
    yield "no rule beats these in fitness, state and operations at once:"
    yield _FRONT.format("fitness", "bytes", "passes", "nearest known rule")
    yield from map(_on_front, confirmed)
    if others and confirmed:
        yield "these would, if fresh instances confirmed them:"
    yield from map(_on_front, others[:FEW])
    if len(others) > FEW:
        yield f"and {len(others) - FEW} more: 'discover report' shows them"


def _on_front(ranked: Ranked) -> str:
    state, passes = costs(ranked)
    name = resemblance(dsl.parse(ranked.candidate.text))
    return _FRONT.format(fitness(ranked), f"{state:g}", f"{passes:g}", f"{name} (rank {ranked.rank})")


def summary(event: Finished, budget: Budget = UNLIMITED) -> Iterator[str]:
    """The funnel, the rates, whether it took much longer than it was to, and where the time went."""
    totals = event.totals
    rejected = sum(totals.rejected.values())
    reasons = ", ".join(f"{reason} {count}" for reason, count in by_count(totals.rejected))
    yield f"{totals.proposed} proposed: {rejected} rejected{f' ({reasons})' if reasons else ''},"
    yield f"  {totals.duplicates} duplicates, {totals.trained} trained ({totals.distinct} distinct behaviours)"
    if event.elapsed > 0:
        yield (
            f"{format_duration(event.elapsed)}: {event.proposed / event.elapsed:.0f} proposed and"
            f" {event.trained / event.elapsed:.1f} trained a second, {totals.model_steps:,} model steps in all"
        )
    if event.ended:
        yield f"ended since {event.ended}"
    if budget.seconds is not None and not event.interrupted and event.elapsed > EXCESS * budget.seconds:
        more, had = format_duration(event.elapsed - budget.seconds), format_duration(budget.seconds)
        yield f"{more} more than the {had} that it had: so long took what was in flight then"
    if where := time_shares(totals):
        yield f"where the time went: {where}"
    if event.incidents:
        yield f"incidents: {', '.join(f'{kind} {count}' for kind, count in event.incidents.items())}"


def by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def time_shares(totals: Totals) -> str:
    """The driver's phases, with their shares of the time that went by, and what the workers did with theirs."""
    driver, workers = totals.time["driver"], totals.time["workers"]
    if not driver:
        return ""
    whole = max(sum(driver.values()), 1e-9)
    phases = ", ".join(f"{phase} {format_duration(s)} ({s / whole:.0%})" for phase, s in driver.items())
    if "share" not in workers or "training" in driver:
        return phases
    others = ", ".join(f"{phase} {format_duration(workers[phase])}" for phase in ("load", "idle"))
    return f"{phases}; workers: train {format_duration(workers['train'])} ({workers['share']:.0%}), {others}"


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else "?"


class Rows:
    """A plain table of text, in which no word is broken. Where the words have no room beside each other, the columns
    that are left follow in a table of their own, which repeats the first one.

    Args:
        columns: headers; rows: as many cells each.
    """

    def __init__(self, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
        self.columns, self.rows = list(columns), [list(row) for row in rows]
        cells = [[column, *(row[place] for row in self.rows)] for place, column in enumerate(self.columns)]
        self._least = [max(cell_len(word) for text in each for word in [*text.split(), ""]) for each in cells]
        self._most = [max(cell_len(text) for text in each) for each in cells]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        most = sum(self._most) + _GAP * (len(self._most) - 1)
        return Measurement(min(most, options.max_width), min(most, options.max_width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for places in self._blocks(options.max_width):
            yield self._table(places, options.max_width)

    def _blocks(self, width: int) -> list[list[int]]:
        """Columns that have room beside each other."""
        blocks, used = [[0]], self._least[0]
        for place, least in enumerate(self._least[1:], start=1):
            if used + _GAP + least > width and len(blocks[-1]) > 1:
                blocks.append([0])
                used = self._least[0]
            blocks[-1].append(place)
            used += _GAP + least
        return blocks

    def _table(self, places: Sequence[int], width: int) -> Table:
        widths = [self._most[place] for place in places]
        while sum(widths) + _GAP * (len(widths) - 1) > width:
            slack = [wide - self._least[place] for wide, place in zip(widths, places, strict=True)]
            if max(slack) <= 0:  # a first column of one word that leaves no room for another
                slack = widths
            widths[slack.index(max(slack))] -= 1
        table = Table(box=None, pad_edge=False, header_style="bold")
        for place, wide in zip(places, widths, strict=True):
            table.add_column(escape(self.columns[place]), overflow="fold", width=wide)
        for row in self.rows:
            table.add_row(*(escape(row[place]) for place in places))
        return table


_GAP = 2
"""Spaces between two columns."""
