"""From what was asked for to a search that runs: settles a configuration, keeps the run's files beside the events.

What needs torch is imported last, so that a mistake in a search space shows at once.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Any, cast

from numpy.random import default_rng

import dsl
from discover.budget import UNLIMITED, Budget
from discover.errors import ArchiveError, SpaceError, UnwritableError, UserError, first_line
from discover.events import Event, Finished, GenerationDone, Notice, Started
from discover.manifest import Configuration
from discover.own_files import absolute
from discover.records import Incident
from discover.rule_names import rule_of
from discover.runs import Run
from discover.space import Space
from dsl import Program

if TYPE_CHECKING:
    from discover.archive import Archive
    from discover.plan import Plan
    from discover.workers import Crew

BREEDING = ("evolution", "hyperparameters", "best_of_n")
"""Algorithms that change the rules that they start from."""

ROOTLESS = ("random",)
"""Algorithms that start from no rule."""

CHILDREN = 100
"""How many random changes of a rule are tried before it is said that the gate lets none in."""


def configure(
    space: str,
    *,
    algorithm: str | None = None,
    seed: int = 0,
    budget: Budget = UNLIMITED,
    control: str | None = None,
    control_compute: float = 1.0,
    warm_start: Sequence[str] = (),
    workers: int | None = None,
    ray_address: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    compile: str | None = None,
    own_tasks: Sequence[str] = (),
) -> Configuration:
    """Checks what was asked for, and settles what was not.

    Args:
        space: name or YAML file.
        own_tasks: tasks to search on in place of the space's, by name or as "FILE.py:NAME".
        algorithm: a proposer's name or FILE.py:NAME; by default the space's.
        budget: when it ends; without any limit, the space's budget holds.
        control: the algorithm of a control, which gets `control_compute` times the budget.
        warm_start: rules to start from in place of the space's ancestors; RUN@K too.
        workers: by default one for each CPU this process may use, or all that the cluster has room for.
        ray_address, runtime_env: of a cluster, and how its workers get the code (`discover.workers.Crew`).

    Raises:
        UserError: no such space, rule or task, one that breaks its contract, or a task that is in two sets; a rule to
            start from, or times the budget, where that has no influence.
    """
    loaded = Space.load(space)
    import tasks
    from discover import plan, sets

    loaded.check_tasks(tasks.check_name, space)
    loaded = loaded.absolute()
    if own_tasks:
        loaded = loaded.with_tasks([_spelling(absolute(task)) for task in own_tasks])
    loaded = loaded.renamed({name: _spelling(name) for rung in loaded.rungs for name in rung.tasks})
    sets.refuse_overlap(loaded.tasks.sets, space)
    algorithm = absolute(control or algorithm or loaded.algorithm)
    if warm_start and algorithm in ROOTLESS:
        raise UserError(_without_influence(loaded, warm_start, algorithm))
    if warm_start:
        loaded = loaded.starting_from(warm_start)
    budget = budget if budget.limits else loaded.budget
    if control is not None:
        budget = _times(budget, control_compute)
    choice = compile or loaded.compile
    configuration = Configuration(
        space=loaded,
        ancestors=tuple(dsl.format(dsl.check(rule_of(rule))) for rule in loaded.ancestor),
        algorithm=algorithm,
        seed=seed,
        compiled_from=plan.compile_choice(loaded, choice, budget.seconds),
        native=plan.native_choice(choice),
        budget=budget,
        workers=len(os.sched_getaffinity(0)) if workers is None and ray_address is None else workers,
        ray_address=ray_address,
        runtime_env=runtime_env,
    )
    _check_algorithm(configuration)
    if warm_start and algorithm in BREEDING and loaded.template is None:
        _check_ancestors(configuration, space)
    return configuration


def left_out(space: str, configuration: Configuration) -> Iterator[str]:
    """A line for each task that leaves a set of the space since it is searched on now."""
    asked, now = Space.load(space).absolute().tasks.sets, configuration.space.tasks.sets
    for part in ("select", "final"):
        for task in asked[part]:
            if task not in now[part]:
                yield f"{task} is searched on now, under some options, and left out of tasks.{part}"


def _times(budget: Budget, factor: float) -> Budget:
    if factor != 1.0 and not budget.compute:
        limits = " and ".join(budget.words()) or "no limit"
        raise UserError(
            f"--control-compute {factor:g} is so many times the time, candidates and model steps, and none of them"
            f" limits this search ({limits}); give --model-steps, say"
        )
    return budget.times(factor)


def _without_influence(space: Space, rules: Sequence[str], algorithm: str) -> str:
    """That the algorithm takes no notice of these rules; and what of them it would take."""
    rule = rules[0]
    words = f"--warm-start {rule} has no influence on algorithm '{algorithm}', which starts from no rule; leave it out"
    if changing := [rule for rule in rules if rule in space.warm_starts]:
        words += f", and write what `warm_starts` changes for {changing[0]} into a copy of the space if that is to hold"
    return words


def _check_algorithm(asked: Configuration) -> None:
    """Starts the proposer once, so that what it refuses is said before there is a run."""
    from discover.progress import Progress

    Progress(_plan(asked))


def _check_ancestors(asked: Configuration, source: str) -> None:
    """Refuses a rule that could have no child: it is too long, or the gate lets none of many changes of it in."""
    from discover.gate import Gate, Rejected
    from discover.mutate import mutate, straight_lines

    settled, space = _plan(asked), asked.space
    gate = Gate(space.require, space.probes, weight_decay=space.weight_decay)

    def wanting(program: Program, n: int) -> str:
        child = mutate(program, settled.grammar, default_rng(n)).program
        if child == program and all(len(line) > space.max_statements for _, line in straight_lines(program.body)):
            return f"longer than {space.max_statements} statements"
        verdict = gate.examine(child)
        return verdict.reason if isinstance(verdict, Rejected) else ""

    for rule, program in zip(space.ancestor, settled.ancestors, strict=True):
        reasons = Counter(takewhile(bool, (wanting(program, n) for n in range(CHILDREN))))
        if reasons.total() == CHILDREN:
            raise SpaceError(
                f"{source}: no search can start from '{rule}': of {CHILDREN} random changes of it the gate lets none in"
                f" (most often: {reasons.most_common(1)[0][0]}); start from another rule, or change `require`, `probes`"
                " or `max_statements`"
            )


def search(run: Run, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """Searches, from wherever the run's archive ends, and keeps `best.rule` up to date.

    Yields:
        Started, perhaps a Notice, then what the engine yields.
    """
    from discover import artefact, engine

    asked = run.configuration
    settled = _plan(asked)
    best: int | None = None
    with run.archive() as archive, _noted(archive, run.resumed) as (gone, ends):
        yield Started(
            asked.space.name,
            asked.algorithm,
            asked.seed,
            asked.workers,
            archive.totals().generations,
            asked.compiled_from,
            asked.budget,
        )
        if gone:
            yield Notice(gone)
        slow = [f"gradients of {task}" for task, start in asked.compiled_from.items() if start is None]
        slow += [] if asked.native else ["rules"]
        if slow and not artefact.have_compiler():
            yield Notice(f"no C++ compiler found: plain PyTorch, several times slower, for {', '.join(slow)}")
        events = engine.search(settled, archive, _crew(asked, settled), asked.budget, stop)
        with closing(cast(Generator[Event, None, None], events)):  # so that workers end before the archive is closed
            for event in events:
                head = event.best if isinstance(event, GenerationDone) else None
                if isinstance(event, Finished):
                    head = next(iter(event.leaderboard), None)
                    ends("interrupted" if event.interrupted else "finished")
                if head is not None and (head.candidate.id != best or isinstance(event, Finished)):
                    best = head.candidate.id
                    run.write_best(head)
                yield event


@contextmanager
def _noted(archive: Archive, facts: Mapping[str, Any] | None) -> Iterator[tuple[str, Callable[[str], None]]]:
    """Has the archive note when a session begins, with facts about it, and how it ends. Gives what it says of a session
    before that came to no end, and what is told how this one ends."""
    reason = "left"

    def ends(how: str) -> None:
        nonlocal reason
        reason = how

    gone = archive.begin_session(facts)
    try:
        yield gone, ends
    except GeneratorExit:
        raise  # whoever asked for events wants no more
    except BaseException as error:
        reason = str(error) if isinstance(error, UserError) else first_line(error)
        if isinstance(error, ArchiveError | UnwritableError):  # of a generation, or of `best.rule`
            with suppress(ArchiveError):  # a line may still find room where a generation did not
                archive.log([Incident("not stored", reason)])
        raise
    finally:
        with suppress(ArchiveError):
            archive.end_session(reason)


def _plan(asked: Configuration) -> Plan:
    from discover import plan

    return plan.Plan(
        space=asked.space,
        seed=asked.seed,
        algorithm=asked.algorithm,
        compiled_from=asked.compiled_from,
        native=asked.native,
        starts=asked.ancestors,
    )


def _crew(asked: Configuration, plan: Plan) -> Crew:
    from discover.workers import Crew

    unit = asked.space.unit
    return Crew(
        count=asked.workers,
        address=asked.ray_address,
        time_limit=unit.limit_seconds,
        memory=int(unit.memory * 1e9),
        requests=tuple(dict.fromkeys(rung.request for rung in asked.space.rungs)),
        files=plan.files,
        runtime_env=asked.runtime_env,
    )


def _spelling(task: str) -> str:
    """What the task's results are stored under. Raises UserError where there is no such task."""
    from discover import named_tasks

    return named_tasks.load(task).spelling
