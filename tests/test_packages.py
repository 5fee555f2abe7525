"""Laws of the packages: which may import which, and what happens where another one has a package's name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {"dsl": {"dsl"}, "tasks": {"tasks"}, "discover": {"discover", "dsl", "tasks"}}
ONLY_IN = {"ray": {"cluster.py", "connection.py"}, "sqlite3": {"archive.py"}}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_depend_one_way(package: str) -> None:
    files = list((ROOT / package).glob("**/*.py"))
    assert files
    for path in files:
        assert imports(path) & set(MAY_IMPORT) <= MAY_IMPORT[package], path


@pytest.mark.parametrize("module", ONLY_IN)
def test_some_libraries_are_known_to_few_modules(module: str) -> None:
    files = [path for package in MAY_IMPORT for path in (ROOT / package).glob("**/*.py")]
    users = {path.name for path in files if module in imports(path)}
    assert users == ONLY_IN[module]


def test_the_page_on_architecture_names_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*?) \|", page.partition("## Modules")[2].partition("## Data flow")[0], re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(.*?)`", row)]
    for package in ("dsl", "discover"):  # of `tasks` it says that the others are one task each
        modules = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
        assert {each for each in modules if not any(fnmatch(each, name) for name in named)} == set()


def test_a_hidden_package_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("print('another one')\n")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import discover"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: discover needs its own package 'tasks', but Python finds 'tasks' in ")


def test_what_a_training_script_imports_is_light() -> None:
    code = "import sys; from discover import optim; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"tasks", "ray", "optuna", "sklearn", "pydantic"} & set(done.stdout.split())


def test_what_shipped_spaces_search_and_judge_on_needs_no_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {
        each.partition(">")[0] for name in ("images", "tokens") for each in project["optional-dependencies"][name]
    }
    code = f"""if True:
        import sys
        sys.modules.update(dict.fromkeys({sorted(extras)}))  # as where they are not installed
        import tasks
        from discover.space import Space, names
        for space in map(Space.load, names()):
            space.check_tasks(tasks.load, space.name)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    needed = {each.partition(">")[0] for each in project["dependencies"]}
    assert "pillow" in needed  # scikit-learn reads its photograph by it, and does not ask for it
    assert not needed & extras
