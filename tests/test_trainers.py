"""Laws of training contenders: a rule and its twin in torch come to the same, a run is its own, and a kill changes no
bit."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tasks
from discover import generators, memory
from discover.contenders import ClassContender, Contender, RuleContender, check, contender
from discover.errors import UserError
from discover.footprint import measure
from discover.keeper import Keeper, Luggage, StoppedError
from discover.lanes import Trace
from discover.trainers import Ground, Run, capped_log, train
from dsl import RuleError
from tasks import Batch, Task

ROOT = Path(__file__).parent.parent
STEPS = 24
CURVE = (6, 12)


class Noisy(torch.optim.SGD):
    """Draws from torch's own generator, and counts its steps where `state_dict` does not look."""

    def __init__(self, params: Any, lr: float = 0.1, noise: float = 0.01) -> None:
        super().__init__(params, lr=lr)
        self.noise, self.count = noise, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step()
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(torch.randn_like(p), alpha=self.noise / self.count)


class Listed(torch.optim.Optimizer):
    """Keeps its moments in lists, as views of one buffer and under two names; steps by aliases of the parameters and by
    a method that it holds; wraps an optimizer that has an attribute of its own; draws from a generator of its own."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})
        self.params = self.param_groups[0]["params"]
        self.aliases = [p.data for p in self.params]
        sizes = [p.numel() for p in self.params]
        self.buffer = torch.zeros(sum(sizes))
        self.momenta = [m.view_as(p) for m, p in zip(self.buffer.split(sizes), self.params, strict=True)]
        self.same = {"momenta": self.momenta}
        self.base = Noisy(self.params, lr=lr)
        self.random = np.random.default_rng(0)
        self.rule = self.step_one

    def step_one(self, p: Any, alias: Any, m: Any, same: Any) -> None:
        m.mul_(0.5).add_(p.grad)
        same.mul_(0.9)
        p.grad.copy_(m * self.random.uniform())
        alias.mul_(0.999)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.buffer.mul_(1.1)
        for each in zip(self.params, self.aliases, self.momenta, self.same["momenta"], strict=True):
            self.rule(*each)
        self.base.param_groups[0]["lr"] = self.param_groups[0]["lr"]
        self.base.step()


class Unkeepable(Noisy):
    """Holds what no file can: it is trained anew where it is stopped."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.scale = lambda: 1.0


class Once:
    """Can be written down, and not be made again."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ValueError("not again")


class Unmakeable(Noisy):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.once = Once()


class TwoPoints(torch.optim.SGD):
    """Is evaluated elsewhere than where it trains: at zero."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)
        self.training = False

    def train(self) -> None:
        if not self.training:
            self.training = True
            for p, kept in zip(self.param_groups[0]["params"], getattr(self, "kept", ()), strict=False):
                p.data.copy_(kept)

    def eval(self) -> None:
        self.training = False
        self.kept = [p.detach().clone() for p in self.param_groups[0]["params"]]
        for p in self.param_groups[0]["params"]:
            p.data.zero_()


class Failing(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if self.param_groups[0]["lr"] > 1e3:
            raise torch.linalg.LinAlgError("did not converge")
        super().step()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def ground(task: str = "digits_mlp", steps: int | None = STEPS) -> Ground:
    return Ground(tasks.load(task), steps=steps, compile=False)


@cache
def named(name: str) -> Contender:
    own = {
        "noisy": Noisy,
        "listed": Listed,
        "unkeepable": Unkeepable,
        "unmakeable": Unmakeable,
        "two points": TwoPoints,
        "failing": Failing,
    }
    return ClassContender(name, own[name]) if name in own else contender(name)


def runs(*rates: float, seeds: Sequence[int] = (0, 3), **hypers: float) -> list[Run]:
    return [Run({"lr": rate, **hypers}, seed) for rate in rates for seed in seeds]


CONTENDERS = ("adamw", "muon", "ema_nesterov(adamw)", "torch.optim:AdamW", "pytorch_optimizer:SOAP", "noisy", "listed")

# Rules and classes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["digits_mlp", "bytes_mlp", "digits_cnn"])
@pytest.mark.parametrize(("rule", "twin"), [("adamw", "torch.optim:AdamW"), ("sgd", "torch.optim:SGD")])
def test_a_rule_and_its_twin_in_torch_come_to_the_same(task: str, rule: str, twin: str) -> None:
    here = ground(task)
    strides = [here.stride(named(name)) for name in (rule, twin)]
    assert strides[0] == strides[1]
    some = runs(0.003 / strides[0], 0.03 / strides[0], weight_decay=0.1)
    mine, theirs = (train(named(name), here, some, curve=CURVE) for name in (rule, twin))
    for a, b in zip(mine, theirs, strict=True):
        assert (a.steps, a.lost) == (b.steps, b.lost) == (STEPS, "")
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        assert a.curve == pytest.approx(b.curve, rel=1e-4)


def test_the_hyperparameters_of_a_class_are_those_of_its_arguments() -> None:
    one = named("torch.optim:AdamW")
    assert dict(one.defaults) == {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 1e-2}
    task = tasks.load("quadratic")
    made = one.optimizer(task, [torch.nn.Parameter(torch.zeros(2))], {"beta2": 0.5, "lr": 3.0})
    assert (made.defaults["betas"], made.defaults["lr"]) == ((0.9, 0.5), 3.0)


def test_a_class_that_was_made_from_a_rule_is_that_rule() -> None:
    one = contender("discover.optim:Lion")
    assert isinstance(one, RuleContender)
    assert one.fingerprint == contender("lion").fingerprint != contender("adamw").fingerprint


def test_a_file_of_ones_own_is_a_place_for_a_class_and_its_text_counts(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    prints = []
    for changed in ("", "# changed\n"):
        file.write_text("import torch\n\nclass Mine(torch.optim.SGD):\n    pass\n" + changed)
        prints.append(contender(f"{file}:Mine").fingerprint)
    assert prints[0] != prints[1]


@pytest.mark.parametrize("factor", [1.0, 8.0])
def test_a_learning_rate_over_the_stride_moves_as_far_as_adamws(factor: float) -> None:
    here = ground("digits_mlp")
    for name in ("sgd", "lion", "momentum", "muon", "torch.optim:SGD"):
        rate = factor * 1e-3 / here.stride(named(name))
        (trace,), (adamw,) = (
            train(named(n), here, runs(r, seeds=[0]), curve=[2]) for n, r in ((name, rate), ("adamw", factor * 1e-3))
        )
        start = here.untrained(0)
        assert 1 / 8 < (start - trace.curve[0]) / (start - adamw.curve[0]) < 8, name


MISTAKES = {
    "unknown module": ("torch.optm:AdamW", "there is no module 'torch.optm'"),
    "unknown package": ("no_such_package:AdamW", "there is no module 'no_such_package' here"),
    "unknown class": ("torch.optim:Adamw", "torch.optim has no 'Adamw'; did you mean 'Adam'?"),
    "no class": ("torch.optim:lr_scheduler", "is not a torch.optim.Optimizer"),
    "missing file": ("none.py:Mine", "none.py: no such file"),
    "without lr": ("torch.optim:Optimizer", "has no argument 'lr'"),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_is_no_contender_says_why(text: str, message: str) -> None:
    with pytest.raises(UserError) as found:
        contender(text)
    assert message in str(found.value)


def test_unknown_rules_and_wrappers_alone_are_refused() -> None:
    for text in ("lionn", "ema_nesterov"):
        with pytest.raises(RuleError):
            contender(text)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch.optim:LBFGS", "needs a closure"),
        ("torch.optim:SparseAdam", "cannot train digits_mlp: "),
        ("torch.optim:Muon", "cannot be made for digits_mlp: "),
    ],
)
def test_what_cannot_train_a_task_says_so_before_training(name: str, message: str) -> None:
    with pytest.raises(UserError) as found:
        check(contender(name), tasks.load("digits_mlp"))
    assert message in str(found.value)


# A run is its own ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTENDERS)
def test_a_run_is_the_same_alone_and_beside_others_that_are_lost_or_pruned(name: str) -> None:
    here, one = ground("digits_mlp"), named(name)
    some = runs(0.01, 0.1, 1e9)
    together = train(one, here, some, curve=CURVE, prune=lambda step, losses: [2] if step == CURVE[0] else [])
    assert [trace.lost for trace in together[:4]] == ["", "", "pruned", ""]
    assert (together[2].loss, together[2].steps, len(together[2].curve)) == (math.inf, CURVE[0], 1)
    for index in (0, 1, 3):
        (alone,) = train(one, here, [some[index]], curve=CURVE)
        assert alone == together[index]
        (plain,) = train(one, here, [some[index]])
        assert plain.loss == alone.loss


def test_a_run_is_evaluated_where_its_optimizer_says_and_trained_where_it_trains() -> None:
    here = ground("digits_mlp")
    (one,), (two,) = (
        train(named(name), here, runs(0.3, seeds=[1]), curve=CURVE) for name in ("two points", "torch.optim:SGD")
    )
    zero = float(here.task.validation_loss(here.task.split(torch.zeros(1, here.task.size)))[0])
    assert one.curve == pytest.approx([zero] * 2)
    assert one.loss == pytest.approx(zero)
    assert two.loss < 0.9 * zero


def test_lost_runs_of_a_class_say_why() -> None:
    found = train(named("failing"), ground("digits_mlp"), runs(0.1, 1e6, seeds=[0]))
    assert [trace.lost for trace in found] == ["", "LinAlgError: did not converge"]
    assert found[1].loss == math.inf
    lost = train(named("torch.optim:SGD"), ground("digits_mlp"), runs(1e9, seeds=[0]))
    assert (lost[0].loss, lost[0].lost) == (math.inf, "not finite")
    assert lost[0].steps < STEPS


def test_lost_runs_count_as_untrained() -> None:
    assert capped_log(math.inf, 2.0) == capped_log(5.0, 2.0) == math.log(2)
    assert capped_log(0.5, 2.0) == math.log(0.5)
    assert capped_log(0.0, 2.0) == capped_log(1e-9, 2.0) == math.log(2e-6)
    with pytest.raises(UserError, match="ratios of losses above 0"):
        capped_log(-1.0, 2.0)


def test_a_ground_is_another_where_data_length_or_loss_differ() -> None:
    prints = [
        Ground(tasks.load(name), steps=steps, compile=False).fingerprint
        for name, steps in (
            ("digits_mlp", None),
            ("digits_mlp", 10),
            ("digits_cnn", None),
            ("digits_mlp(batch_size=8)", None),
        )
    ]
    assert len(set(prints)) == len(prints)
    assert Ground(tasks.load("digits_mlp"), steps=10, compile=False).fingerprint == prints[1]


# In groups ----------------------------------------------------------------------------------------------------------


def fitting(count: int, patch: pytest.MonkeyPatch) -> None:
    """As if so many runs fitted into memory."""
    patch.setattr(memory, "of_run", lambda *_: 10)
    patch.setattr(memory, "room", lambda *_: 10 * count)


def worst_of_pairs(step: int, losses: Mapping[int, float]) -> list[int]:
    """Drops a pair of runs that is worse than the one before it, or lost: a trial of two seeds."""
    pairs = {run // 2: [losses[i] for i in (2 * (run // 2), 2 * (run // 2) + 1) if i in losses] for run in losses}
    for pair, ends in pairs.items():
        means.setdefault(step, {})[pair] = sum(ends) / len(ends)
    return [
        run for run in losses if means[step][run // 2] > means[step].get(run // 2 - 1, math.inf) and step == CURVE[0]
    ]


means: dict[int, dict[int, float]] = {}


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_runs_come_to_the_same_however_they_are_cut(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    here, one, some = ground("digits_mlp"), named(name), runs(0.01, 0.3, 0.1, 1e9)
    means.clear()
    whole = [train(one, here, some, curve=CURVE), train(one, here, some, curve=CURVE, prune=worst_of_pairs, together=2)]
    told = {step: dict(pairs) for step, pairs in means.items()}
    assert any(trace.lost == "pruned" for trace in whole[1])
    fitting(count, monkeypatch)
    means.clear()
    assert train(one, here, some, curve=CURVE) == whole[0]
    assert train(one, here, some, curve=CURVE, prune=worst_of_pairs, together=2) == whole[1]
    assert means == told


@pytest.mark.parametrize("name", ["muon", "noisy"])
@pytest.mark.parametrize("at", [5, 20, 27])
def test_a_training_in_groups_that_was_stopped_goes_on_in_the_group_where_it_was(
    name: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, one, some = ground("digits_mlp"), named(name), runs(0.01, 0.3, 0.1)
    means.clear()
    options: dict[str, Any] = {"curve": CURVE, "prune": worst_of_pairs, "together": 2}
    expected = train(one, here, some, **options)
    fitting(2, monkeypatch)

    def steps_of(stop_at: int, keeping: Path | None) -> int:
        """How many steps are trained, to the end or until it is stopped."""
        means.clear()
        taken: list[int] = []

        def stop() -> bool:
            taken.append(1)
            return len(taken) == stop_at

        with suppress(StoppedError):
            assert train(one, here, some, **options, keeper=Keeper(keeping, stop=stop)) == expected
        return len(taken)

    in_all = steps_of(10**6, None)
    assert steps_of(at, tmp_path) == at
    assert steps_of(10**6, tmp_path) == in_all - at  # not from the start
    assert list(tmp_path.iterdir()) == []


def test_as_many_runs_train_at_once_as_fit_by_what_each_takes() -> None:
    task = tasks.load("digits_mlp")
    sizes = {name: memory.of_run(named(name), task, STEPS, 0) for name in ("sgd", "lion", "adamw", "torch.optim:AdamW")}
    numbers = 4 * task.size
    assert sizes["lion"] - sizes["sgd"] == numbers
    assert sizes["adamw"] - sizes["sgd"] == 2 * numbers == sizes["torch.optim:AdamW"] - sizes["sgd"]
    assert sizes["sgd"] == memory.COPIES * numbers + 8 * STEPS * task.batch_size
    assert [memory.at_once(10, room) for room in (0, 9, 10, 39, 40, 1000)] == [1, 1, 1, 2, 4, 64]
    assert [memory.at_once(10, room, together=3) for room in (0, 59, 60, 130)] == [3, 3, 6, 12]
    assert ground("digits_mlp").at_once(named("adamw")) > 100


def machine(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_memory_is_what_the_machine_and_its_control_groups_leave(tmp_path: Path) -> None:
    assert memory.free_memory(tmp_path / "unknown") == sys.maxsize
    plain = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n", "proc/self/cgroup": "0::/job/step\n"}
    assert memory.free_memory(machine(tmp_path / "plain", plain)) == 4_096_000
    outer = "sys/fs/cgroup/job/"
    bound = {outer + "memory.max": "1000000\n", outer + "memory.current": "700000\n"}
    bound |= {outer + "memory.stat": "anon 1\ninactive_file 200000\n", outer + "step/memory.max": "max\n"}
    assert memory.free_memory(machine(tmp_path / "bound", plain | bound)) == 500_000
    old = "sys/fs/cgroup/memory/"
    first = {"proc/meminfo": plain["proc/meminfo"], "proc/self/cgroup": "5:memory:/docker/abc\n"}
    first |= {old + "memory.limit_in_bytes": "900000", old + "memory.usage_in_bytes": "1000000"}
    first |= {old + "memory.stat": "total_inactive_file 50000\n"}
    assert memory.free_memory(machine(tmp_path / "first", first)) == 0


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), RuntimeError("bad_alloc")]
)
def test_a_shortage_of_memory_is_said_in_a_line_and_other_errors_are_not(error: Exception) -> None:
    with pytest.raises(UserError) as found, memory.shortage_said("12 runs of muon on gpt"):
        raise error
    assert str(found.value).startswith("12 runs of muon on gpt: out of memory (")
    assert "fewer --workers" in str(found.value)
    assert "\n" not in str(found.value)
    with pytest.raises(RuntimeError, match="shape"), memory.shortage_said("12 runs of muon on gpt"):
        raise RuntimeError("a shape is wrong")


def test_a_training_is_kept_less_often_where_keeping_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, kept = [0.0], []

    def state() -> int:
        kept.append(now[0])
        now[0] += 3.0  # takes so long
        return 0

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    keeper = Keeper(tmp_path, seconds=30)
    while now[0] < 200:
        keeper.pulse("key", state)
        now[0] += 1.0
    assert kept == [30.0, 93.0, 156.0]


def test_a_ground_that_takes_its_batch_in_pieces_is_told_apart_by_one_example(monkeypatch: pytest.MonkeyPatch) -> None:
    task = copy.copy(tasks.load("digits_mlp"))
    task.microbatch = 16
    changed = copy.copy(task)
    monkeypatch.setattr(changed, "loss", lambda parts, batch: 2 * type(task).loss(changed, parts, batch), raising=False)
    seen: list[int] = []
    loss = type(task).loss

    def watched(self: Task, parts: Mapping[str, Tensor], batch: Batch) -> Tensor:
        seen.append(batch[0].shape[1])
        return loss(self, parts, batch)

    monkeypatch.setattr(type(task), "loss", watched)
    first = Ground(task, compile=False).fingerprint
    assert set(seen) == {1}
    monkeypatch.setattr(type(task), "loss", loss)
    assert first == Ground(task, compile=False).fingerprint != Ground(changed, compile=False).fingerprint


# Kept and resumed ---------------------------------------------------------------------------------------------------


def halfway(step: int, losses: Mapping[int, float]) -> list[int]:
    """Drops the worst of those that are left."""
    told.append((step, dict(losses)))
    return [max(losses, key=lambda run: losses[run])]


told: list[tuple[int, dict[int, float]]] = []


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("at", [5, 12, 20])
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(name: str, at: int, tmp_path: Path) -> None:
    here, one, some = ground("digits_mlp"), named(name), runs(0.01, 0.1, 1e9)
    told.clear()
    undisturbed = train(one, here, some, curve=CURVE, prune=halfway)
    expected = list(told)
    calls = iter(range(10**6))
    with pytest.raises(StoppedError):
        train(one, here, some, curve=CURVE, prune=halfway, keeper=Keeper(tmp_path, stop=lambda: next(calls) == at))
    assert len(list(tmp_path.iterdir())) == 1
    told.clear()
    assert train(one, here, some, curve=CURVE, prune=halfway, keeper=Keeper(tmp_path)) == undisturbed
    assert told == expected
    assert list(tmp_path.iterdir()) == []


def test_an_optimizer_that_cannot_be_kept_is_trained_anew_and_to_its_end_where_it_travels(tmp_path: Path) -> None:
    here, one, some = ground("digits_mlp"), named("unkeepable"), runs(0.01)
    undisturbed = train(one, here, some)
    calls = iter(range(10**6))
    with pytest.raises(StoppedError):
        train(one, here, some, keeper=Keeper(tmp_path, stop=lambda: next(calls) == 5))
    assert list(tmp_path.iterdir()) == []
    assert train(one, here, some, keeper=Keeper(tmp_path, seconds=0.0, spacing=0.0)) == undisturbed
    assert train(one, here, some, keeper=Luggage({}, leg=0.0, spacing=0.0)) == undisturbed
    with pytest.raises(StoppedError):
        train(named("listed"), here, some, keeper=Luggage({}, leg=0.0, spacing=0.0))


def test_what_was_kept_of_an_optimizer_and_cannot_be_made_again_is_trained_anew(tmp_path: Path) -> None:
    here, one, some = ground("digits_mlp"), named("unmakeable"), runs(0.01, 0.1)
    undisturbed = train(one, here, some, curve=CURVE, prune=halfway)
    calls = iter(range(10**6))
    with pytest.raises(StoppedError):
        train(one, here, some, curve=CURVE, prune=halfway, keeper=Keeper(tmp_path, stop=lambda: next(calls) == 15))
    assert len(list(tmp_path.iterdir())) == 1
    assert train(one, here, some, curve=CURVE, prune=halfway, keeper=Keeper(tmp_path)) == undisturbed


class OnDevice(Noisy):
    """Draws where it trains: from a generator that is not the CPU's."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step()
        for p in self.param_groups[0]["params"]:
            p.add_(torch.randn(p.shape, generator=DEVICE), alpha=self.noise)


DEVICE = torch.Generator()


@pytest.mark.parametrize("at", [1, 5, 20])
def test_what_is_drawn_on_a_device_is_a_runs_own_and_goes_on(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU has a generator of its own; here another one of the CPU stands for it."""
    monkeypatch.setattr(generators, "generators", lambda device: [torch.default_generator, DEVICE])
    here, one, some = ground("digits_mlp"), ClassContender("on device", OnDevice), runs(0.01, 0.1)
    before = [each.get_state() for each in (torch.default_generator, DEVICE)]
    undisturbed = train(one, here, some)
    assert [train(one, here, [each])[0] for each in some] == undisturbed
    calls = iter(range(10**6))
    with pytest.raises(StoppedError):
        train(one, here, some, keeper=Keeper(tmp_path, stop=lambda: next(calls) == at))
    DEVICE.manual_seed(17)  # another process
    assert train(one, here, some, keeper=Keeper(tmp_path)) == undisturbed
    DEVICE.set_state(before[1])
    train(one, here, some)
    assert all(
        torch.equal(each.get_state(), b) for each, b in zip((torch.default_generator, DEVICE), before, strict=True)
    )


def test_what_was_kept_of_another_training_or_damaged_is_not_used(tmp_path: Path) -> None:
    here, one, some = ground("digits_mlp"), named("adamw"), runs(0.01)
    calls = iter(range(10**6))
    with pytest.raises(StoppedError):
        train(one, here, some, keeper=Keeper(tmp_path, stop=lambda: next(calls) == 5))
    (file,) = tmp_path.iterdir()
    other = runs(0.02)
    assert train(one, here, other, keeper=Keeper(tmp_path)) == train(one, here, other)
    file.write_bytes(file.read_bytes()[:100])
    assert train(one, here, some, keeper=Keeper(tmp_path)) == train(one, here, some)


KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
import tasks
from pathlib import Path
from discover.contenders import contender
from discover.keeper import Keeper
from discover.trainers import Ground, Run, train

steps = iter(range(10**6))

def stop():
    if next(steps) == 15:
        os.kill(os.getpid(), signal.SIGKILL)
    return False

ground = Ground(tasks.load("digits_mlp"), steps=24, compile=False)
some = [Run({"lr": 0.05}, 0), Run({"lr": 0.01}, 3)]
train(contender("muon"), ground, some, keeper=Keeper(Path(sys.argv[1]), seconds=0, spacing=0, stop=stop))
"""


@pytest.mark.parametrize(
    "name", ["adamw", "schedule_free_adamw", "torch.optim:AdamW", "schedulefree:AdamWScheduleFree"]
)
def test_taking_held_out_losses_changes_no_bit_of_a_training(name: str) -> None:
    here = Ground(tasks.load("digits_mlp"), steps=20, compile=False)
    runs = [Run({"lr": lr}, seed) for lr in (0.01, 0.1) for seed in range(3)]
    rarely, often = (train(contender(name), here, runs, curve=curve) for curve in ((10,), range(1, 20)))
    assert [(each.loss, each.curve) for each in rarely] == [(each.loss, (each.curve[9],)) for each in often]


def test_an_optimizer_with_two_points_is_tried_measured_and_trained_at_the_one_to_train_from() -> None:
    """Schedule-Free's step refuses the other, and the class begins there."""
    here, one = ground("digits_mlp"), named("schedulefree:AdamWScheduleFree")
    check(one, here.task)
    assert 0.01 < here.stride(one) < 10.0
    assert here.stride(one) != 1.0  # what a stride is where it cannot be measured
    assert measure([one, named("adamw")], here.task)[one.name].state_bytes == pytest.approx(8.0)
    (found,) = train(one, here, runs(0.01 / here.stride(one), seeds=[0]))
    assert found.loss < here.untrained(0)


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, cwd=ROOT, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    some = [Run({"lr": 0.05}, 0), Run({"lr": 0.01}, 3)]
    went: list[bool] = []
    keeper = Keeper(tmp_path, stop=lambda: bool(went.append(True)))
    found: list[Trace] = train(named("muon"), ground("digits_mlp"), some, keeper=keeper)
    assert found == train(named("muon"), ground("digits_mlp"), some)
    assert len(went) == STEPS - 15  # not from the start


@pytest.mark.parametrize("name", ["adahessian", "mezo", "sam(sgd)"])
def test_a_rule_that_asks_for_more_than_a_gradient_trains_and_is_measured(name: str) -> None:
    here, one = ground("digits_mlp"), named(name)
    assert isinstance(one, RuleContender)
    assert one.asks
    assert 1e-4 < here.stride(one) < 1e4
    (found,) = train(one, here, runs(0.03 / here.stride(one), seeds=[0]))
    assert found.steps == STEPS
    assert found.loss < here.untrained(0)
    assert measure([one, named("sgd")], here.task)[name].seconds is None


# Costs --------------------------------------------------------------------------------------------------------------


def test_state_is_counted_for_each_parameter_and_time_is_there() -> None:
    names = ("sgd", "adamw", "torch.optim:AdamW", "lion", "torch.optim:SGD")
    found = measure([named(name) for name in names], tasks.load("digits_mlp"))
    assert [found[name].state_bytes for name in names] == [0, 8, 8, 4, 0]
    assert all(each.seconds is not None and 0 < each.seconds < 1 for each in found.values())
    own = measure([named("listed")], tasks.load("digits_mlp"))["listed"]
    assert own.state_bytes == 4  # the moments in its list, once, and nothing of the optimizer within
