"""An exported file stands alone, is well formatted, and follows the optimizer it was made from bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dsl
from discover import export, optim
from discover.optimizer import class_name

BASES = [name for name in dsl.names() if not dsl.load(name).rules]
WRAPPERS = [name for name in dsl.names() if dsl.load(name).rules]
RULES = [*BASES, *(f"{wrapper}({base})" for wrapper in WRAPPERS for base in ("adamw", "muon"))]

TRAIN = """
import json, sys
import torch

def train(make, steps):
    torch.manual_seed(0)
    shapes = [(4, 3), (3, 2, 2, 2), (5,), (), (6, 4)]
    params = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    params[1].data = params[1].data.contiguous(memory_format=torch.channels_last)
    opt = make([{"params": params[:4]}, {"params": params[4:], "role": "head", "lr": 0.02}])
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 1 - t / 60)
    for t in range(steps):
        for i, p in enumerate(params):
            p.grad = (1 + i) * p.detach() + 0.7 * torch.randn(p.shape, dtype=p.dtype)
        params[t % 5].grad = None
        opt.step()
        schedule.step()
        if hasattr(opt, "eval") and t % 20 == 5:
            opt.eval()
            opt.train()
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
for module, name in json.loads(sys.argv[1]):
    made = getattr(importlib.import_module(module), name)
    results[module] = train(lambda groups: made(groups, lr=0.05), 50)
print(json.dumps(results))
"""
)


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
    wanted = [(module, class_name(dsl.load(rule).name)) for rule, module in modules.items()]
    (folder / "main.py").write_text(ALONE)
    run = subprocess.run(
        [sys.executable, "-W", "error", "main.py", json.dumps(wanted)],
        cwd=folder, capture_output=True, text=True, env={"PATH": ""}, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("rule", RULES)
def test_exported_file_follows_the_optimizer_exactly(
    rule: str, alone: dict[str, list[list[float]]], files: tuple[Path, dict[str, str]]
) -> None:
    space: dict[str, object] = {}
    exec(TRAIN, space)
    mine = space["train"](lambda groups: optim.create(rule, groups, lr=0.05), 50)  # type: ignore[operator]
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
    lint = [command, "check", "--isolated", "--line-length", "120", "--select", "E,F,I,UP", str(files[0])]
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
