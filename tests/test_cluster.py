"""Laws of a search on a cluster of several nodes: whatever befalls it, nothing is lost, the archive is the one that an
undisturbed search writes, and what happened is noted in it.

All of it runs on a real Ray cluster of three nodes on this machine. Searches go on until what they are to meet has
happened; what is compared is what they stored by then with as much of an undisturbed search.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from discover import cli, connection, runs, session, workers
from discover.archive import Archive
from discover.budget import Budget
from discover.cluster import RayWorkers
from discover.errors import ArchiveError, ClusterError
from discover.events import Event, Finished, GenerationDone
from discover.evolution import Evolution, Proposal
from discover.placement import fit
from discover.records import Candidate, Generation
from discover.workers import Crew
from discover.workshop import Workshop
from tests.home import settle
from tests.stored import stored as stored_trials
from tests.test_promote import a_run, adam, lasting, read

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
STORE = 80 * 2**20
GENERATIONS = 40
DEADLINE = 240.0

TASK = """
import os, time
import torch
from tasks import Parameter, Task

class Slow(Task):
    name, title, source = "slow", "a quadratic", "a test"
    parameters = (Parameter.normal("w", (4,), "vector", 1.0),)
    batch_size, horizon, warmup, learning_rate = 2, 8, 1, 0.1

    def __init__(self):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
        super().__init__((x,), (x,))

    def loss(self, parameters, batch):
        return (parameters["w"].unsqueeze(1) - batch[0]).square().mean((1, 2))

    def validation_loss(self, parameters):
        time.sleep(float(os.environ.get("PAUSE_OF_A_TEST", "0")))
        return super().validation_loss(parameters)

class Trap(Slow):
    name = "trap"
    parameters = (Parameter.constant("w", (4,), "vector", 1.0),)
    horizon, learning_rate = 16, 1e-4
    hoard = []

    def loss(self, parameters, batch):
        w = parameters["w"]  # 9 after two steps of p = 3p, -8 after two of p = p - 3|p|, which nothing else comes near
        if ((w - 9).abs() < 0.02).any():
            time.sleep(3600)
        while ((w + 8).abs() < 0.02).any():
            Trap.hoard.append(torch.ones(1 << 20))
        if w.isnan().any() and "NAN_OF_A_TEST" in os.environ:
            open(os.environ["NAN_OF_A_TEST"], "w").close()
        return super().loss(parameters, batch)
"""

SPACE = """
operators: [add, sub, mul, div, neg, sign, square, sqrt, lerp]
max_statements: 18
evolution: {population: 8}
proposals_per_generation: 24
tasks: {search: [TASK]}
learning_rates: {points: 3, factor: 3.0}
rungs:
  - {tasks: [TASK], steps: 8, keep: 0.5RESOURCES}
  - {tasks: [TASK], steps: 10, seeds: 2}
confirm: {every: 2, top: 2, most: 3}
unit: {candidates: 4, time_limit: LIMIT, memory: 0.3}
require: {odd: false, homogeneous: false}
probes: {min_cosine: -1.0, max_update: 1.0e+300, max_growth: 1.0e+300}
loss_scales: [1.0, 1.0]
parameter_scales: [1.0, 1.0]
compile: never
"""


class Ground:
    """A cluster that can lose nodes and get new ones: a head without CPUs, two nodes with one each."""

    def __init__(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
        from ray.cluster_utils import Cluster

        quick = {
            "health_check_initial_delay_ms": 500,
            "health_check_period_ms": 300,
            "health_check_failure_threshold": 3,
        }
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "object_store_memory": STORE,
                "include_dashboard": False,
                "_system_config": quick,
            },
        )
        Path("/tmp/ray/ray_current_cluster").unlink(missing_ok=True)  # no other Ray of this machine shall join it
        self.add()
        self.add(num_gpus=1, resources={"fast": 1})
        self.cluster.wait_for_nodes()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, **options: Any) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=STORE, wait=False, **options)

    def remove(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    ground = Ground()
    yield ground
    ground.cluster.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spaces")
    (folder / "own.py").write_text(TASK)
    write_space(folder / "slow.yaml", "Slow")
    write_space(folder / "kinds.yaml", "Slow", resources=", resources: {GPU: 0.5, fast: 0.5}")
    write_space(folder / "trap.yaml", "Trap", limit="3s")
    return folder


def write_space(path: Path, task: str, limit: str = "10m", resources: str = "") -> None:
    text = SPACE.replace("TASK", f'"own.py:{task}"').replace("LIMIT", limit).replace("RESOURCES", resources)
    path.write_text(text)


@pytest.fixture(scope="module")
def whole(folder: Path) -> list[Generation]:
    """What an undisturbed search stores."""
    out = folder / "whole"
    with runs.create(
        session.configure(str(folder / "slow.yaml"), workers=0, budget=Budget(candidates=10**6)), out=out
    ) as run:
        for event in session.search(run):
            if isinstance(event, GenerationDone) and event.record.number == GENERATIONS - 1:
                break
    return stored(out)


def stored(out: Path) -> list[Generation]:
    if not (out / "archive.sqlite").exists():
        return []
    with Archive.read(out / "archive.sqlite") as archive:
        return list(archive.generations())


def incidents(out: Path) -> list[tuple[str, str]]:
    with Archive.read(out / "archive.sqlite") as archive:
        return [(each.kind, each.text) for each in archive.incidents()]


def kinds(out: Path) -> set[str]:
    return {kind for kind, _ in incidents(out)}


def environment(pause: float = 0.02, **more: Any) -> dict[str, Any]:
    return {"env_vars": {"PAUSE_OF_A_TEST": str(pause), **more.pop("env_vars", {})}, **more}


@pytest.fixture
def crews(monkeypatch: pytest.MonkeyPatch) -> list[RayWorkers]:
    """The crews of the searches of a test, as they are started."""
    crews: list[RayWorkers] = []
    start = workers.start

    def started(crew: Crew) -> workers.Workers:
        found = start(crew)
        assert isinstance(found, RayWorkers)
        crews.append(found)
        return found

    monkeypatch.setattr(workers, "start", started)
    return crews


def search(
    space: Path,
    out: Path,
    address: str,
    on_generation: Callable[[int], None] = lambda number: None,
    stop: Callable[[], bool] = lambda: False,
    workers: int | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    candidates: int = 10**6,
) -> Finished:
    """Searches on the cluster until told to stop, or for too long."""
    asked = session.configure(
        str(space),
        workers=workers,
        ray_address=address,
        budget=Budget(candidates=candidates),
        runtime_env=environment() if runtime_env is None else runtime_env,
    )
    with runs.create(asked, out=out) as run:
        return finish(session.search(run, or_too_long(stop)), on_generation)


def or_too_long(stop: Callable[[], bool]) -> Callable[[], bool]:
    deadline = time.monotonic() + DEADLINE

    def asked() -> bool:
        assert time.monotonic() < deadline, "what was to happen did not happen"
        return stop()

    return asked


def finish(events: Iterator[Event], on_generation: Callable[[int], None] = lambda number: None) -> Finished:
    for event in events:
        if isinstance(event, GenerationDone):
            on_generation(event.record.number)
    assert isinstance(event, Finished)
    return event


def test_a_worker_that_is_killed_costs_nothing(
    ground: Ground, folder: Path, whole: list[Generation], tmp_path: Path, crews: list[RayWorkers]
) -> None:
    out, killed = tmp_path / "out", []

    def kill(number: int) -> None:
        busy = [each for pool in crews[0]._pools.values() for each in pool.workers if each.jobs]
        if busy and len(killed) < 2:
            os.kill(busy[0].process, signal.SIGKILL)
            killed.append(busy[0].process)

    def over() -> bool:
        return len(killed) == 2 and {f"process {each}" for each in killed} <= lost_processes(out)

    ended = search(folder / "slow.yaml", out, ground.address, kill, over)
    assert 2 <= len(stored(out)) <= GENERATIONS
    assert stored(out) == whole[: len(stored(out))]
    assert ended.incidents["worker lost"] == 2
    assert ended.incidents["unit retried"] >= 1
    assert "unit given up" not in ended.incidents


def lost_processes(out: Path) -> set[str]:
    return {text.partition(" on ")[0] for kind, text in incidents(out) if kind == "worker lost"}


def test_a_node_that_goes_costs_nothing_and_one_that_comes_is_used_within_seconds(
    ground: Ground, folder: Path, whole: list[Generation], tmp_path: Path, crews: list[RayWorkers]
) -> None:
    out = tmp_path / "out"
    extra = ground.add()
    ground.cluster.wait_for_nodes()
    times: dict[str, float] = {}
    given: set[Any] = set()

    def at_work(node: str) -> set[Any]:
        """The units that ready workers of a node have."""
        there = [each for pool in crews[0]._pools.values() for each in pool.workers if each.ready and each.node == node]
        return {key for each in there for key in each.jobs}

    def change() -> bool:
        now = time.monotonic()
        if "removed" not in times and at_work(extra.node_id) and stored(out):
            ground.remove(extra)
            times["removed"] = now
        if "removed" in times and "added" not in times and "node removed" in kinds(out):
            times["added"] = now
            ground.new = ground.add()
        if "added" in times and "used" not in times and at_work(ground.new.node_id):
            times["used"] = now
            times["generations"] = len(stored(out))
            given.update(at_work(ground.new.node_id))
        return "used" in times and len(stored(out)) > times["generations"] and not given & at_work(ground.new.node_id)

    search(folder / "slow.yaml", out, ground.address, stop=change, runtime_env=environment(pause=0.1))
    ground.remove(ground.new)
    assert times["used"] - times["added"] < 15  # the node itself takes some seconds to start
    assert stored(out) == whole[: len(stored(out))]
    assert {"node removed", "node added", "worker lost", "unit retried"} <= kinds(out)


def test_a_node_that_goes_with_all_its_workers_costs_a_unit_one_attempt(
    ground: Ground, folder: Path, whole: list[Generation], tmp_path: Path, crews: list[RayWorkers]
) -> None:
    out, times = tmp_path / "out", dict[str, int]()
    extra = ground.cluster.add_node(num_cpus=4, object_store_memory=STORE, wait=True)

    def change() -> bool:
        there = [each for pool in crews[0]._pools.values() for each in pool.workers if each.ready]
        if "removed" not in times and [each.node for each in there].count(extra.node_id) == 4 and stored(out):
            ground.remove(extra)
            times["removed"] = len(stored(out))
        return "removed" in times and "node removed" in kinds(out) and len(stored(out)) >= times["removed"] + 4

    search(folder / "slow.yaml", out, ground.address, stop=change, runtime_env=environment(pause=0.1))
    assert stored(out) == whole[: len(stored(out))]
    found = incidents(out)
    retried = [text for kind, text in found if kind == "unit retried"]
    assert 1 <= len(retried) == len(set(retried))
    assert "unit given up" not in kinds(out)


def test_a_driver_that_is_killed_at_once_loses_nothing(
    ground: Ground, folder: Path, whole: list[Generation], tmp_path: Path, crews: list[RayWorkers]
) -> None:
    out = tmp_path / "out"
    (tmp_path / "environment.yaml").write_text(json.dumps(environment()))
    process = driver(
        *("search", "--space", str(folder / "slow.yaml"), "--ray-address", ground.address),
        *("--runtime-env", str(tmp_path / "environment.yaml"), "--candidates", "1000000", "--out", str(out)),
    )
    try:
        wait_until(lambda: len(stored(out)) >= 2)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = len(stored(out))
    assert runs.describe(out)["state"] == "killed"
    with runs.resume(str(out)) as run:
        finish(session.search(run, or_too_long(lambda: len(stored(out)) >= before + 2)))
    assert runs.describe(out)["state"] == "stopped"
    assert len(stored(out)) >= before + 2
    assert stored(out) == whole[: len(stored(out))]
    ((_, text),) = [each for each in incidents(out) if each[0] == "driver gone"]
    assert f"; generation {before - 1}, the last, was stored at 20" in text


def driver(*argv: str, patience: float = 60.0, **more: str) -> subprocess.Popen[str]:
    """The command line in a process of its own, with `more` in its environment."""
    code = f"import sys; from discover import cli, cluster; cluster.PATIENCE_SECONDS = {patience}; sys.exit(cli.main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **more},
        start_new_session=True,
    )


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "what was to happen did not happen"
        time.sleep(0.05)


RULES = {
    "hangs": "x = 3.0 * p\n    y = lr * g\n    p = x - y",
    "hoards": "x = sqrt(square(p))\n    y = 3.0 * x\n    z = lr * g\n    w = y + z\n    p = p - w",
    # At its third step a and b are infinite in single precision, and in double at none that the gate looks at.
    "is not a number": """x = 10000.0 * p
    y = square(p)
    z = y * y
    v = square(g)
    a = z * z
    b = a * v
    c = a - b
    d = tanh(c)
    e = d + g
    u = lr * e
    p = x + u""",
}


def test_a_candidate_that_hangs_or_hoards_or_diverges_takes_no_other_with_it(
    ground: Ground, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dsl

    programs = [dsl.parse(f"def rule(p, g, *, lr=1e-3, weight_decay=0.0):\n    {body}\n") for body in RULES.values()]
    propose, asked = Evolution.propose, iter(range(10**6))

    def with_culprits(self: Evolution, rng: Any) -> Proposal:
        proposal = propose(self, rng)
        number = next(asked)
        return Proposal(programs[number - 5], (), "a culprit") if 5 <= number < 5 + len(programs) else proposal

    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    with runs.create(
        session.configure(str(folder / "trap.yaml"), workers=0, budget=Budget(candidates=1)), out=undisturbed
    ) as run:
        finish(session.search(run))
    monkeypatch.setattr(Evolution, "propose", with_culprits)
    shown = environment(env_vars={"NAN_OF_A_TEST": str(tmp_path / "nan")})
    ended = search(folder / "trap.yaml", out, ground.address, stop=lambda: bool(stored(out)), runtime_env=shown)
    assert (tmp_path / "nan").exists()
    hangs, hoards, diverges = (candidate(out, 5 + index) for index in range(3))
    assert (hangs.status, hangs.reason, hangs.fitness) == ("timed_out", "timed out", None)
    assert (hoards.status, hoards.reason, hoards.fitness) == ("worker_lost", "out of memory", None)
    assert (diverges.status, diverges.reason) == ("diverged", "every training was lost")
    others = [each for each in stored(out)[0].candidates if each.id not in (5, 6, 7) and each.duplicate_of is None]
    assert len(others) > 3
    assert all(each.status == "trained" for each in others)
    expected, found = losses(undisturbed), losses(out)
    both = expected.keys() & found.keys()
    assert {each.id for each in others} <= {id for id, _ in both}
    assert {rung for _, rung in both} == {0, 1}
    assert all(found[each] == expected[each] for each in both)
    notes = incidents(out)
    assert any(kind == "timed out" and "candidates 5 on" in text for kind, text in notes)
    assert any(kind == "out of memory" and "candidates 6 on" in text for kind, text in notes)
    assert ended.incidents["timed out"] >= 2  # the unit that it was in, and it alone


def test_what_diverges_does_so_anywhere_and_the_archive_is_the_same(
    ground: Ground, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dsl

    body = RULES["is not a number"]
    diverging = dsl.parse(f"def rule(p, g, *, lr=1e-3, weight_decay=0.0):\n    {body}\n")
    propose, asked = Evolution.propose, iter(range(10**6))

    def with_culprit(self: Evolution, rng: Any) -> Proposal:
        proposal = propose(self, rng)
        return Proposal(diverging, (), "a culprit") if next(asked) == 5 else proposal

    monkeypatch.setattr(Evolution, "propose", with_culprit)
    here, there = tmp_path / "here", tmp_path / "there"
    few = Budget(candidates=40)
    with runs.create(session.configure(str(folder / "trap.yaml"), workers=0, budget=few), out=here) as run:
        finish(session.search(run))
    asked = iter(range(10**6))
    search(folder / "trap.yaml", there, ground.address, candidates=40)
    assert candidate(there, 5).status == "diverged"
    assert len(stored(there)) > 2
    assert stored(there) == stored(here)


def losses(out: Path) -> dict[tuple[int, int], list[Any]]:
    """Of the first generation's candidates on each rung."""
    found: dict[tuple[int, int], list[Any]] = {}
    for each in stored(out)[0].evaluations:
        if each.candidate is not None and each.candidate not in (5, 6, 7):
            found.setdefault((each.candidate, each.rung), []).append((each.seed, each.losses))
    return found


def candidate(out: Path, id: int) -> Candidate:
    return next(each for each in stored(out)[0].candidates if each.id == id)


def test_a_full_disk_ends_the_search_in_one_line_and_costs_nothing(
    ground: Ground, folder: Path, whole: list[Generation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, opened = tmp_path / "out", Archive.open

    def small(path: Path) -> Archive:
        archive = opened(path)
        (pages,) = next(archive._rows("pragma page_count"))
        archive._connection.execute(f"pragma max_page_count = {pages + 8}")
        return archive

    with monkeypatch.context() as patch:
        patch.setattr(Archive, "open", small)
        with pytest.raises(
            ArchiveError, match=r"archive.sqlite: the disk is full; free some space, then .*resume"
        ) as e:
            search(folder / "slow.yaml", out, ground.address)
    cause = e.value.__cause__
    assert isinstance(cause, sqlite3.OperationalError)
    assert str(cause) == "database or disk is full"
    assert kinds(out) == {"not stored"}
    assert runs.describe(out)["incidents"] == {"not stored": 1}
    before = len(stored(out))
    with runs.resume(str(out)) as run:
        finish(session.search(run, or_too_long(lambda: len(stored(out)) >= before + 2)))
    assert stored(out) == whole[: len(stored(out))]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of half a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"nothing can be mounted here (who is not root may not): {error}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def mount(*argv: str) -> None:
    subprocess.run(["mount", *argv], check=True, capture_output=True)


def test_a_disk_that_is_full_in_truth_ends_the_command_in_one_line_and_costs_nothing(
    ground: Ground, folder: Path, whole: list[Generation], tmp_path: Path, disk: Path
) -> None:
    out = disk / "out"
    (tmp_path / "environment.yaml").write_text(json.dumps(environment()))
    ours = ("--ray-address", ground.address, "--runtime-env", str(tmp_path / "environment.yaml"))
    process = driver(
        *("search", "--space", str(folder / "slow.yaml"), *ours, "--candidates", "1000000", "--out", str(out)),
    )
    try:
        _, err = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    assert process.returncode == 2, err
    last = err.strip().splitlines()[-1]
    reasons = "the disk is full; free some space, then 'discover resume' goes on", "No space left on device"
    assert last.startswith("discover: ")
    assert last.endswith(reasons)
    assert shutil.disk_usage(disk).free < 64 * 2**10
    before = len(stored(out))
    assert 0 < before < GENERATIONS
    assert digest(out, before) == digest(folder / "whole", before)
    mount("-o", "remount,size=64m", str(disk))
    again = driver("resume", str(out), *ours, "--candidates", "1000000")
    try:
        wait_until(lambda: len(stored(out)) >= before + 2 or again.poll() is not None)
        again.send_signal(signal.SIGINT)
        _, err = again.communicate(timeout=30)
    finally:
        again.kill()
    assert again.returncode == 0, err
    after = len(stored(out))
    assert before + 2 <= after <= GENERATIONS
    assert digest(out, after) == digest(folder / "whole", after)
    with Archive.read(out / "archive.sqlite") as archive:  # the second where there was no room for a line of the first
        assert {each.kind for each in archive.incidents()} & {"not stored", "driver gone"}


def digest(out: Path, generations: int) -> str:
    with Archive.read(out / "archive.sqlite") as archive:
        return archive.digest(generations)


def test_a_rung_gets_the_kind_of_worker_that_it_asks_for(
    ground: Ground, folder: Path, whole: list[Generation], tmp_path: Path, crews: list[RayWorkers]
) -> None:
    out = tmp_path / "out"
    search(folder / "kinds.yaml", out, ground.address, stop=lambda: len(stored(out)) >= 2)
    assert stored(out) == whole[: len(stored(out))]
    rare, plain = crews[0]._pools.values()
    assert dict(rare.request) == {"CPU": 1.0, "GPU": 0.5, "fast": 0.5}
    assert dict(plain.request) == {"CPU": 1.0}
    resources = {each["NodeID"]: each["Resources"] for each in nodes(ground)}
    assert all("fast" in resources[each.node] for each in rare.workers)
    assert rare.mean > 0
    assert plain.mean > 0


def nodes(ground: Ground) -> list[dict[str, Any]]:
    import ray

    with ray.init(address=ground.address, logging_level="ERROR", log_to_driver=False):
        return list(ray.nodes())


def test_a_kind_of_worker_that_no_node_has_room_for_is_said(ground: Ground, folder: Path, tmp_path: Path) -> None:
    crew = RayWorkers(Crew(None, ground.address, requests=((("CPU", 1.0), ("TPU", 4.0)),), runtime_env={}))
    crew.close()
    assert crew.notes.popleft() == "no node has room for a worker with CPU 1, TPU 4; its units wait until one has"
    assert crew.incidents.popleft().kind == "no room"


# Judging ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def judging(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to judge in, without a compiler, and with what workers are told: to take their time."""
    shutil.copy(folder / "own.py", tmp_path)
    told = environment(pause=0.05, env_vars={"CXX": "no-such-compiler"})
    (tmp_path / "environment.yaml").write_text(json.dumps(told))
    settle(tmp_path, monkeypatch)
    return tmp_path


def losing(
    ground: Ground, crews: list[RayWorkers], monkeypatch: pytest.MonkeyPatch, when: Callable[[], bool]
) -> list[str]:
    """Has a worker killed that trains, when it is time, and then a node whose worker trains removed; gives what was
    lost, as it happens."""
    extra, lost, come_in = ground.add(), list[str](), Workshop._come_in
    ground.cluster.wait_for_nodes()

    def watched(self: Workshop, crew: RayWorkers, *rest: Any) -> Any:
        busy = [each for pool in crew._pools.values() for each in pool.workers if each.ready and each.jobs]
        here = [each for each in busy if each.node != extra.node_id]
        if not lost and here and when():
            os.kill(here[0].process, signal.SIGKILL)
            lost.append("a worker")
        elif lost == ["a worker"] and len(here) < len(busy):
            ground.remove(extra)
            lost.append("a node")
        return come_in(self, crew, *rest)

    monkeypatch.setattr(Workshop, "_come_in", watched)
    return lost


def losses_said(text: str) -> int:
    """In how many lines; a node is known by its worker or by itself, whichever Ray notices first."""
    return text.count("a worker was lost (") + text.count("a node left the cluster (")


def test_a_comparison_that_loses_a_worker_and_a_node_comes_to_the_same_and_says_so(
    ground: Ground, judging: Path, crews: list[RayWorkers], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    line = "compare sgd lion momentum --task own.py:Slow --trials 8 --tunings 2 --seeds 2 --tuning-seeds 1 --json"

    def compares(where: str, *staff: str) -> tuple[Any, dict[str, list[Any]], str]:
        capfd.readouterr()
        assert cli.main([*line.split(), "--storage", url(where), "--out", where, *staff]) == 0
        out, said = capfd.readouterr()
        rows = json.loads(out)["tasks"]["own.py:Slow"]["contenders"]  # nobody else has written there
        return {name: row["tunings"] for name, row in rows.items()}, stored_trials(url(where)), said

    def url(where: str) -> str:
        return f"sqlite:///{judging / where}.sqlite"

    *here, _ = compares("here", "--workers", "0")
    lost = losing(ground, crews, monkeypatch, lambda: any(stored_trials(url("there")).values()))
    *there, said = compares("there", "--ray-address", ground.address, "--runtime-env", "environment.yaml")
    assert lost == ["a worker", "a node"]
    assert losses_said(said) >= 2
    assert here == there
    assert len(here[1]) == 8


def test_a_promotion_that_loses_a_worker_and_a_node_within_a_rung_certifies_the_same_and_says_so(
    ground: Ground, judging: Path, crews: list[RayWorkers], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    run = a_run([adam()])

    def within() -> bool:
        return list(read(run, "promotion.json")["stages"]) == ["incumbents"]

    assert cli.main(["promote", "found", "--workers", "0"]) == 0
    here = read(run)
    for name in ("promotion.json", "certificate.json"):
        (run / name).unlink()
    lost = losing(ground, crews, monkeypatch, within)
    capfd.readouterr()
    staff = ["--ray-address", ground.address, "--runtime-env", "environment.yaml"]
    assert cli.main(["promote", "found", *staff, "--storage", f"sqlite:///{judging}/there.sqlite"]) == 0
    assert lost == ["a worker", "a node"]
    assert losses_said(capfd.readouterr().out) >= 2
    there = read(run)
    assert lasting(there) == lasting(here)
    assert [len(each["sessions"][0]["workers"]) for each in (here, there)] == [0, 1]


# How code gets there --------------------------------------------------------------------------------------------------


def codes(crews: list[RayWorkers]) -> set[str]:
    return {each.code for crew in crews for pool in crew._pools.values() for each in pool.workers if each.ready}


def test_workers_get_code_and_own_tasks_that_their_machine_does_not_have(
    ground: Ground, folder: Path, whole: list[Generation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    for package in connection.PACKAGES:
        shutil.copytree(ROOT / package, elsewhere / package, ignore=shutil.ignore_patterns("__pycache__"))
    (elsewhere / "only_there").touch()
    shutil.copytree(folder, tmp_path / "moved", ignore=shutil.ignore_patterns("whole"))
    crews: list[RayWorkers] = []

    def start(crew: Crew) -> RayWorkers:
        (tmp_path / "moved" / "own.py").unlink()  # the driver has read it; workers elsewhere never could
        crews.append(RayWorkers(crew))
        return crews[0]

    monkeypatch.setattr(workers, "start", start)
    out = tmp_path / "out"
    shipped = environment(working_dir=str(elsewhere))
    search(tmp_path / "moved" / "slow.yaml", out, ground.address, stop=lambda: bool(stored(out)), runtime_env=shipped)
    (code,) = codes(crews)
    assert "_ray_pkg_" in code
    assert (Path(code).parent / "only_there").exists()
    assert without_names(stored(out)) == without_names(whole[: len(stored(out))])


def without_names(generations: list[Generation]) -> list[Any]:
    """The task is another file's, and so has another name."""
    return [(each.record, each.candidates, each.confirmations) for each in generations]


def test_the_installation_itself_is_shipped_where_nothing_else_is_said(ground: Ground) -> None:
    crew = RayWorkers(Crew(1, ground.address))
    try:
        wait_until(lambda: crew.next() is None and bool(codes([crew])))
        (code,) = codes([crew])
    finally:
        crew.close()
    assert "_ray_pkg_" in code


def test_workers_run_an_installed_wheel(
    ground: Ground, folder: Path, whole: list[Generation], tmp_path: Path, crews: list[RayWorkers]
) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    source = tmp_path / "source"
    wanted = (*connection.PACKAGES, "search_spaces")
    for package in wanted:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path), str(source)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()  # so that Ray does not put this folder first, where the code is too
    installed = environment(working_dir=str(tmp_path / "empty"), env_vars={"PYTHONPATH": str(target)})
    search(folder / "slow.yaml", out, ground.address, stop=lambda: bool(stored(out)), runtime_env=installed)
    assert codes(crews) == {str(target / "discover")}
    assert stored(out) == whole[: len(stored(out))]


# The cluster itself ---------------------------------------------------------------------------------------------------


def test_where_the_head_is_gone_the_search_ends_in_one_line_and_goes_on_elsewhere(
    ground: Ground, folder: Path, whole: list[Generation], tmp_path: Path
) -> None:
    doomed, out = Ground(), tmp_path / "out"
    address = doomed.address
    (tmp_path / "environment.yaml").write_text(json.dumps(environment()))
    process = driver(
        *("search", "--space", str(folder / "slow.yaml"), "--ray-address", address),
        *("--runtime-env", str(tmp_path / "environment.yaml"), "--candidates", "1000000", "--out", str(out)),
        patience=1.0,
    )
    try:
        wait_until(lambda: len(stored(out)) >= 2)
        doomed.cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        doomed.cluster.shutdown()
    assert process.returncode == 2, err
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"discover: the Ray cluster at {address} has not answered for 1 seconds; what is ")
    assert "cluster lost" in kinds(out)
    before = len(stored(out))
    with runs.resume(str(out), ray_address=ground.address) as run:
        finish(session.search(run, or_too_long(lambda: len(stored(out)) >= before + 2)))
    assert stored(out) == whole[: len(stored(out))]


MODES = {
    "another cluster": {"RAY_AUTH_MODE": "disabled"},
    "and it asks for a token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4},
}


@pytest.mark.parametrize("mode", MODES)
def test_where_the_head_is_started_again_the_search_ends_in_one_line_and_goes_on_there(
    mode: str, ground: Ground, folder: Path, whole: list[Generation], tmp_path: Path
) -> None:
    doomed, out = Ground(), tmp_path / "out"
    address = doomed.address
    (tmp_path / "environment.yaml").write_text(json.dumps(environment()))
    ours = ("--ray-address", address, "--runtime-env", str(tmp_path / "environment.yaml"), "--candidates", "1000000")
    search = driver("search", "--space", str(folder / "slow.yaml"), *ours, "--out", str(out))
    again: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryDirectory(prefix="head-", dir="/tmp") as sockets:  # Ray's sockets want a short path
        try:
            wait_until(lambda: len(stored(out)) >= 2)
            doomed.cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
            again.append(head(address, sockets, MODES[mode]))
            _, err = search.communicate(timeout=60)
            assert search.returncode == 2, err
            last = err.strip().splitlines()[-1]
            line = f"the head of the Ray cluster at {address} was restarted"
            assert last == f"discover: {line}; what is absorbed is kept, 'discover resume RUN' goes on when it is back"
            assert incidents(out)[-1] == ("cluster lost", line)
            before = len(stored(out))
            again.append(driver("resume", str(out), *ours, **MODES[mode]))
            wait_until(lambda: len(stored(out)) >= before + 2 or again[-1].poll() is not None)
            again[-1].send_signal(signal.SIGINT)
            _, err = again[-1].communicate(timeout=30)
            assert again[-1].returncode == 0, err
        finally:
            for process in (search, *again):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            doomed.cluster.shutdown()
    assert len(stored(out)) >= before + 2
    assert stored(out) == whole[: len(stored(out))]


def head(address: str, sockets: str, mode: Mapping[str, str]) -> subprocess.Popen[str]:
    """A head with two CPUs, started as users do, at the port of another."""
    host, _, port = address.rpartition(":")
    options = ["--num-cpus=2", "--include-dashboard=false", f"--object-store-memory={STORE}", "--disable-usage-stats"]
    place = [f"--node-ip-address={host}", f"--port={port}", f"--temp-dir={sockets}"]
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", *place, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **mode},
        start_new_session=True,
        text=True,
    )


def test_workers_that_cannot_start_are_one_line(ground: Ground, tmp_path: Path) -> None:
    (tmp_path / "discover").mkdir()
    (tmp_path / "discover" / "__init__.py").write_text("raise RuntimeError('not this one')\n")
    crew = RayWorkers(Crew(1, ground.address, runtime_env={"working_dir": str(tmp_path)}))
    try:
        with pytest.raises(ClusterError, match=r"^workers cannot start: .*not this one"):
            wait_until(lambda: crew.next() is not None)
    finally:
        crew.close()


NODES: dict[str, tuple[list[dict[str, float]], list[dict[str, float]], list[int]]] = {
    "one kind": ([{"CPU": 4}, {"CPU": 2}], [{"CPU": 1}], [6]),
    "parts of a GPU": ([{"CPU": 8, "GPU": 1}], [{"CPU": 1, "GPU": 0.5}], [2]),
    "each kind gets a place": ([{"CPU": 2}, {"CPU": 2}], [{"CPU": 1}, {"CPU": 2}], [2, 1]),
    "the rare one is not crowded out": ([{"CPU": 4}, {"CPU": 2, "GPU": 2}], [{"CPU": 1}, {"CPU": 1, "GPU": 1}], [4, 2]),
    "no room": ([{"CPU": 4}], [{"CPU": 1}, {"CPU": 1, "TPU": 1}], [4, 0]),
    "nothing asked": ([{"CPU": 4}, {"CPU": 4}], [{"CPU": 0}], [2]),
    "no node": ([], [{"CPU": 1}], [0]),
}


@pytest.mark.parametrize("case", NODES)
def test_room_is_shared_between_kinds(case: str) -> None:
    nodes, requests, counts = NODES[case]
    assert fit(nodes, [tuple(sorted(each.items())) for each in requests]) == counts
