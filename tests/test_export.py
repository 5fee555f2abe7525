"""An exported file stands alone, is well formatted, and follows the optimizer it was made from bit for bit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import dsl
from discover import export, optim
from discover.export_kinds import condition, kinds
from discover.optimizer import class_name
from dsl.codegen import generate
from dsl.graph import needs
from dsl.program import ROLES, Facts

BASES = [name for name in dsl.names() if not dsl.load(name).rules]
WRAPPERS = [name for name in dsl.names() if dsl.load(name).rules]
NESTED = ["ema_nesterov(clip_global(adamw))", "clip_global(sam(muon))", "lookahead(sophia_h)", "clip_adaptive(galore)"]
RULES = [*BASES, *(f"{wrapper}({base})" for wrapper in WRAPPERS for base in ("adamw", "muon")), *NESTED]
SMALL = {
    "frequency": 3,
    "rank": 2,
    "history": 4,
    "block": 4,
    "k": 3,
    "interval": 5,
    "chunk": 3,
    "warmup": 4,
    "rest": 15,
}
"""Values with which twenty steps see all that a rule does."""

TRAIN = """
import json, sys
import torch

def train(make, steps, hypers, ops, gradient, examples):
    torch.manual_seed(0)
    shapes = [(4, 3), (3, 2, 2, 2), (5,), (), (6, 4), (3, 5)]
    params = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    params[1].data = params[1].data.contiguous(memory_format=torch.channels_last)
    groups = [{"params": params[:3]}, {"params": params[3:4] + params[5:], "maximize": "loss_at" not in ops}]
    opt = make([*groups, {"params": params[4:5], "role": "head", "lr": 0.02}], hypers)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 1 - t / 60)
    features = [torch.randn(7, p.numel(), dtype=p.dtype) / p.numel() for p in params]

    def losses(noise):
        z = torch.tanh(sum(x @ p.flatten() for x, p in zip(features, params)))
        return (z - torch.sin(features[0][:, 0]) if noise is None else z - z.detach() - noise).square()

    for t in range(steps):
        noise = torch.randn(7, dtype=torch.float64)
        silent = params[t % 6]
        def closure(sample=False, examples=False):
            loss = losses(noise if sample else None)
            if examples:
                return loss
            if gradient:
                for p in params:
                    p.grad = None
                loss.mean().backward(create_graph="hvp" in ops)
                silent.grad = None
            return loss.mean()
        if ops:
            opt.step(closure, **({"examples": 7} if examples else {}))
        else:
            for i, p in enumerate(params):
                p.grad = (1 + i) * p.detach() + 0.7 * torch.randn(p.shape, dtype=p.dtype)
            silent.grad = None
            opt.step()
        schedule.step()
        if hasattr(opt, "eval") and t % 10 == 5:
            opt.eval()
            opt.train()
        if t == 12:
            opt.load_state_dict(opt.state_dict())
    if hasattr(opt, "eval"):
        opt.eval()
    return [p.detach().flatten().tolist() for p in params]
"""

ALONE = (
    TRAIN
    + """
import importlib
for name in ("dsl", "discover"):
    sys.modules[name] = None  # importing it is an error
results = {}
for module, name, *how in json.loads(sys.argv[1]):
    made = getattr(importlib.import_module(module), name)
    results[module] = train(lambda groups, hypers: made(groups, **hypers), 20, *how)
print(json.dumps(results))
"""
)


def how(rule: str) -> tuple[dict[str, float], list[str], bool, bool]:
    """Hyperparameters to train it with, and what it must be given."""
    program = dsl.load(rule)
    asks = needs(program)
    small = {name: value for name, value in {**SMALL, "lr": 0.05}.items() if name in program.defaults}
    return small, list(asks.closure), asks.gradient, asks.examples


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("exported")
    modules = {}
    for number, rule in enumerate(RULES):
        modules[rule] = f"rule_{number}"
        (folder / f"rule_{number}.py").write_text(export.source(dsl.load(rule)))
    return folder, modules


@pytest.fixture(scope="module")
def alone(files: tuple[Path, dict[str, str]]) -> dict[str, list[list[float]]]:
    """What the exported files compute where neither package can be imported."""
    folder, modules = files
    wanted = [(module, class_name(dsl.load(rule).name), *how(rule)) for rule, module in modules.items()]
    (folder / "main.py").write_text(ALONE)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:Using backward", "main.py", json.dumps(wanted)],
        cwd=folder, capture_output=True, text=True, check=False,
        env={"PATH": "", "MKL_CBWR": os.environ.get("MKL_CBWR", "")},  # products of the same bits as in this process
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("rule", RULES)
def test_exported_file_follows_the_optimizer_exactly(
    rule: str, alone: dict[str, list[list[float]]], files: tuple[Path, dict[str, str]]
) -> None:
    space: dict[str, object] = {}
    exec(TRAIN, space)
    mine = space["train"](lambda groups, hypers: optim.create(rule, groups, **hypers), 20, *how(rule))  # type: ignore[operator]
    assert alone[files[1][rule]] == mine


def test_exported_files_are_formatted(files: tuple[Path, dict[str, str]]) -> None:
    ruff = Path(sys.executable).parent / "ruff"
    command = str(ruff) if ruff.exists() else shutil.which("ruff")
    if command is None:
        pytest.skip("ruff is not installed")
    base = [command, "format", "--isolated", "--line-length", "120", "--diff", str(files[0])]
    (files[0] / "main.py").unlink(missing_ok=True)
    run = subprocess.run(base, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    lint = [
        command,
        "check",
        "--isolated",
        "--line-length",
        "120",
        "--select",
        "E,F,I,UP",
        "--ignore",
        "E741",
        str(files[0]),
    ]
    run = subprocess.run(lint, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_exported_adamw_reads_as_golden_file_says() -> None:
    assert export.source(dsl.load("adamw")) == (Path(__file__).parent / "golden" / "adamw_export.py").read_text()


def test_exported_class_has_the_rules_signature_and_groups(tmp_path: Path) -> None:
    space: dict[str, object] = {"__name__": "exported"}
    exec(export.source(dsl.load("lion")), space)
    made = space["Lion"]
    p = torch.ones(3, requires_grad=True)
    opt = made([{"params": [p], "weight_decay": 0.5}], lr=0.1)  # type: ignore[operator]
    assert opt.param_groups[0]["weight_decay"] == 0.5
    assert opt.param_groups[0]["beta2"] == 0.99
    with pytest.raises(ValueError, match="lr must not be negative"):
        made([p], lr=-1)  # type: ignore[operator]


def test_exported_wrapper_on_kinds_of_parameters_reads_as_golden_file_says() -> None:
    text = export.source(dsl.load("clip_global(muon)"))
    assert text == (Path(__file__).parent / "golden" / "clip_global_muon_export.py").read_text()


def exported(rule: str) -> Any:
    space: dict[str, Any] = {"__name__": "exported"}
    exec(export.source(dsl.load(rule)), space)
    return space[class_name(dsl.load(rule).name)]


def test_exported_rules_say_what_they_need() -> None:
    p = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"SamSgd needs a closure; call opt\.step\(closure\)"):
        exported("sam(sgd)")([p]).step()
    with pytest.raises(ValueError, match="SophiaG needs the number of examples"):
        exported("sophia_g")([p]).step(lambda: 0.0)
    opt = exported("ema_nesterov(sgd)")([p], lr=0.1)
    p.grad = torch.ones(3)
    opt.step()
    opt.eval()
    with pytest.raises(ValueError, match=r"call train\(\) before step\(\)"):
        opt.step()


def test_a_step_whose_closure_failed_counts_neither_there_nor_here() -> None:
    steps = []
    for made in (exported("mars_adamw_exact"), optim.optimizer_class("mars_adamw_exact")):
        p = torch.ones(3, requires_grad=True)
        opt, calls = made([p]), 0

        def closure(p: torch.Tensor = p) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise RuntimeError("out of memory")
            p.grad = None
            loss = p.square().sum()
            loss.backward()
            return loss

        with pytest.raises(RuntimeError, match="out of memory"):
            opt.step(closure)
        steps.append(opt.state[p]["step"])
        opt.step(closure)
        steps.append((opt.state[p]["step"], p.tolist()))
    assert steps[:2] == steps[2:]
    assert steps[0] == 0


def test_an_exported_file_carries_of_the_closure_only_what_its_rule_asks_for() -> None:
    texts = {rule: export.source(dsl.load(rule)) for rule in ("adamw", "sam(sgd)", "mezo", "dp_sgd")}
    assert [("class Closure" in text) for text in texts.values()] == [False, True, True, True]
    for rule, cases in {"sam(sgd)": ["grad_at"], "mezo": ["loss_at"], "dp_sgd": ["clipped_grad"]}.items():
        assert re.findall(r'case "(\w+)"', texts[rule]) == cases


def test_kinds_of_parameters_are_told_apart_exactly() -> None:
    """Each parameter meets the condition of one kind: the one whose code it has."""
    for rule in BASES:
        program = dsl.load(rule)
        all_kinds = kinds(program)
        for shape in ((4, 3), (3, 4), (2, 3, 2), (3, 3), (5,), ()):
            for role in (None, *ROLES):
                p, group = torch.zeros(shape), {"role": role}
                met = [k for k in all_kinds if eval(condition([k], all_kinds) or "True", {"p": p, "group": group})]
                assert [k.code.source for k in met] == [generate(program, Facts.of(shape, role)).source]
