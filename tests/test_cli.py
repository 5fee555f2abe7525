"""The command line: a user's mistake is one line on stderr, exit code 2, nothing written; the rest is as documented."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import dsl
from discover import cli, runs, session
from discover.archive import Archive
from discover.budget import Budget
from discover.manifest import host, read_manifest
from discover.sessions import searched as sessions_of
from tests.test_runs import made

ROOT = Path(__file__).parent.parent
COMMANDS: dict[str, Any] = vars(typer.main.get_command(cli.app))["commands"]
TINY = """\
operators: [add, mul, sign, square, sqrt, lerp, div]
tasks: {search: [breast_cancer]}
rungs: [{tasks: [breast_cancer], steps: 10}]
proposals_per_generation: 16
learning_rates: {points: 3}
compile: never
"""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISCOVER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("DISCOVER_RUNS_DIR", raising=False)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# Mistakes ---------------------------------------------------------------------------------------------------------

RULES = {
    "syntax": ("def x(p, g:\n", "x.rule:1: not Python syntax: "),
    "unknown operator": (
        "def x(p, g):\n    p = p - sgn(g)\n",
        "x.rule:2: unknown operator 'sgn'; did you mean 'sign'?",
    ),
    "type error": (
        "def x(p, g, v: zeros):\n    p = p - lerp(g, g, v)\n",
        "x.rule:2: lerp(g, g, v): argument 3 must be",
    ),
    "unused gradient": ("def x(p, g):\n    p = 2 * p\n", "x.rule:1: the gradient g is not used"),
    "import": ("import os\ndef x(p, g):\n    p = p - g\n", "x.rule:1: an import is not allowed"),
    "import inside": ("def x(p, g):\n    import os\n    p = p - g\n", "x.rule:2: an import is not allowed"),
    "call": ("def x(p, g):\n    p = p - os.system('x')\n", "x.rule:2: an attribute (a.b) is not allowed"),
    "dunder": ("def x(p, g):\n    p = p - g.__class__\n", "x.rule:2: an attribute (a.b) is not allowed"),
    "empty": ("", "x.rule:1: a rule file is one function"),
}


@pytest.mark.parametrize(
    "command", [["show"], ["identify"], ["export", "-o", "x.py"], ["register", "--name", "my_rule"]]
)
@pytest.mark.parametrize(("text", "message"), RULES.values(), ids=RULES)
def test_a_wrong_rule_file_is_refused_with_file_and_line(
    text: str, message: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("x.rule").write_text(text)
    refused(run(capsys, command[0], "x.rule", *command[1:]), message)
    assert [path.name for path in Path().iterdir()] == ["x.rule"]


CONTRADICTION = "--workers 0 trains in this process, --ray-address on a cluster; give one of the two"
MISTAKES = {
    "no such command": ("serach", "No such command 'serach'"),
    "where commands are said": ("serach", "; see 'discover --help'"),
    "no such option": ("search --spaces x", "--spaces"),
    "where options are said": ("search --spaces x", "; see 'discover search --help'"),
    "option without its value": ("search --space tiny.yaml --time", "--time"),
    "missing option": ("search", "Missing option '--space'"),
    "missing argument": ("show", "Missing argument 'RULE'"),
    "text for a number": (
        "search --space tiny.yaml --candidates many",
        "'--candidates': Input should be a valid integer",
    ),
    "too small": ("search --space tiny.yaml --candidates 0", "--candidates"),
    "negative workers": ("search --space tiny.yaml --workers -1", "--workers"),
    "a cluster, and this process": ("search --space tiny.yaml --workers 0 --ray-address auto", CONTRADICTION),
    "the same on resume": ("resume last --workers 0 --ray-address auto", CONTRADICTION),
    "the same in a comparison": ("compare lion --workers 0 --ray-address auto", CONTRADICTION),
    "the same in a calibration": ("calibrate --space lion_like --workers 0 --ray-address auto", CONTRADICTION),
    "the same in a promotion": ("promote last --workers 0 --ray-address auto", CONTRADICTION),
    "the same in verifying": ("verify last --workers 0 --ray-address auto", CONTRADICTION),
    "no finite target": ("search --space tiny.yaml --target nan", "--target nan is not a fitness; give a number"),
    "no finite compute": (
        "search --space tiny.yaml --control random --control-compute inf",
        "--control-compute must be more than 0, and finite",
    ),
    "a start that has no influence": (
        "search --space tiny.yaml --control random --warm-start lion",
        "--warm-start lion has no influence on algorithm 'random'",
    ),
    "times a target": (
        "search --space tiny.yaml --control best_of_n --control-compute 4 --target 1",
        "--control-compute 4 is so many times the time, candidates and model steps, and none of them limits this search"
        " (until fitness 1); give --model-steps, say",
    ),
    "negative seed": ("search --space tiny.yaml --seed -1", "--seed"),
    "bad duration": ("search --space tiny.yaml --time 10x", "'10x' is not a duration; write 90s, 10m, 2h or 1h30m"),
    "bad duration on resume": ("resume last --time soon", "'soon' is not a duration"),
    "unknown algorithm": ("search --space tiny.yaml --algorithm annealing", "unknown algorithm 'annealing'; there "),
    "unknown compile": ("search --space tiny.yaml --compile maybe", "'maybe' is not one of"),
    "unknown space": ("search --space lion_lik", "unknown search space 'lion_lik'; did you mean 'lion_like'?"),
    "missing space file": ("search --space none.yaml", "cannot read 'none.yaml': No such file or directory"),
    "bad space": ("search --space bad.yaml", "bad.yaml: operators: unknown operator 'sgn'; did you mean 'sign'?"),
    "empty space": ("search --space empty.yaml", "empty.yaml: expected 'key: value' lines"),
    "unparsable space": ("search --space broken.yaml", "broken.yaml:1: not YAML"),
    "overlapping task sets": ("search --space overlap.yaml", "'breast_cancer' is in search and in final"),
    "unknown task in a space": ("search --space task.yaml", "tasks.search: unknown task 'brest_cancer'; did you mean"),
    "unknown task": (
        "search --space tiny.yaml --task digts_mlp",
        "unknown task 'digts_mlp'; did you mean 'digits_mlp'?",
    ),
    "missing task file": ("search --space tiny.yaml --task x.py:Net", "x.py: no such file"),
    "folder below a file": ("search --space tiny.yaml --out tiny.yaml/x", "cannot make the run's folder 'tiny.yaml/x'"),
    "folder that is in use": ("search --space tiny.yaml --out used", "used: exists and is not empty"),
    "missing run": ("resume nothing", "no run 'nothing'; 'discover list runs' shows them"),
    "no run yet": ("resume last", "there is no run in 'runs' yet"),
    "not a run": ("resume used", "used: is not a run (it has no manifest.json)"),
    "unknown rule": ("show lionn", "unknown rule 'lionn'; did you mean 'lion'?"),
    "missing rule file": ("show none.rule", "cannot read rule file 'none.rule'"),
    "no rule at all": ("show lion+1", "unknown rule 'lion+1'"),
    "wrapper with too many": ("show ema_nesterov(lion,lion)", "'ema_nesterov' takes 1 rules"),
    "unknown setting": ("export lion(beta3=1) -o x.py", "lion(beta3=1): rule 'lion' has no hyperparameter 'beta3'"),
    "setting out of range": ("show lion(lr=1)", "lr=1 is outside of the range that rule 'lion' declares"),
    "unknown setting to start from": (
        "search --space tiny.yaml --warm-start lion(beta3=1)",
        "no hyperparameter 'beta3'",
    ),
    "setting of a missing run": ("register nothing@1(lr=1) --name x", "no run 'nothing'"),
    "wrapper alone": ("identify ema_nesterov", "takes a rule; write ema_nesterov(adamw)"),
    "rank of a missing run": ("show nothing@1", "no run 'nothing'"),
    "bad rank": ("show nothing@best", "'nothing@best' is not RUN@K"),
    "two ways to show": ("show lion --latex --code", "exclude each other"),
    "taken name": ("register ok.rule --name lion", "'lion' is a built-in rule"),
    "no name": ("register ok.rule --name 1st", "'1st' is not a name for a rule"),
    "register a missing run": ("register nothing --name x", "no run 'nothing'"),
    "register with a bad rank": ("register nothing --name x --rank 0", "--rank"),
    **{
        f"a rank of {rule}": (
            f"register {rule} --name x --rank 2",
            f"--rank is for a run, and '{rule}' is a rule already; write RUN@2, or leave --rank out",
        )
        for rule in ("last@1", "ok.rule", "ema_nesterov(adamw)")
    },
    "unknown list": ("list optimizers", "'optimizers' is not one of"),
}


@pytest.mark.parametrize(("line", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_exit_code_2_and_nothing_written(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tiny.yaml").write_text(TINY)
    Path("bad.yaml").write_text(TINY.replace("sign", "sgn"))
    Path("empty.yaml").write_text("")
    Path("broken.yaml").write_text("operators: ]")
    Path("overlap.yaml").write_text(TINY.replace("[breast_cancer]}", "[breast_cancer], final: [breast_cancer]}", 1))
    Path("task.yaml").write_text(TINY.replace("breast", "brest"))
    Path("ok.rule").write_text("def ok(p, g, *, lr=0.1):\n    p = p - lr * g\n")
    Path("used").mkdir()
    Path("used/notes.txt").write_text("mine")
    before = sorted(Path().rglob("*"))
    refused(run(capsys, *line.split()), message)
    assert sorted(Path().rglob("*")) == before


def refused(result: tuple[int, str, str], message: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("discover: ")
    assert err.count("\n") == 1


def test_runs_that_are_locked_damaged_or_of_another_version_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from discover import runs

    folder = made("out")
    with runs.resume("out"):
        refused(run(capsys, "resume", "out"), f"out: is in use by process {os.getpid()}")
    (folder / "archive.sqlite").write_text("nonsense " * 100)
    refused(run(capsys, "resume", "out"), "archive.sqlite: is not an archive of discover")
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 5', '"format": 6'))
    for command in (["resume", "out"], ["show", "out@1"], ["register", "out", "--name", "x"]):
        refused(run(capsys, *command), "is a run of format 6, and this version reads format 5")


def test_what_cannot_be_written_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    refused(run(capsys, "export", "lion", "-o", "/dev/null/x.py"), "cannot write '/dev/null/x.py': Not a directory")
    refused(run(capsys, "export", "lion", "-o", "."), "'.' is a folder; name a file")
    monkeypatch.setenv("DISCOVER_DATA_DIR", "/dev/null/data")
    Path("ok.rule").write_text("def ok(p, g, *, lr=0.1):\n    p = p - lr * g\n")
    refused(run(capsys, "register", "ok.rule", "--name", "mine"), "cannot write '/dev/null/data/rules/mine.rule'")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("not the user's fault")

    monkeypatch.setattr(dsl, "load", broken)
    with pytest.raises(ValueError, match="not the user's fault"):
        cli.main(["show", "lion"])


def test_the_version_is_that_of_the_distribution(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = metadata.version("optimizer-discovery")
    assert run(capsys, "--version") == (0, f"optimizer-discovery {version}\n", "")
    monkeypatch.setattr(cli, "DISTRIBUTION", "no-such-distribution")
    refused(run(capsys, "--version"), "no-such-distribution is not installed here")


# Ctrl-C -----------------------------------------------------------------------------------------------------------


def stopped(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_any_command_says_that_it_was_stopped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dsl, "load", stopped)
    assert run(capsys, "show", "lion") == (130, "", "discover: stopped\n")


INTERRUPTED = """
import sys

class Interrupts:
    def find_spec(self, name, *rest):
        if name == "discover.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
from MODULE import MAIN
sys.exit(MAIN())
"""


def test_ctrl_c_while_the_command_is_imported_is_one_line() -> None:
    """Of what the installed command calls."""
    module, _, name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["discover"].partition(
        ":"
    )
    script = INTERRUPTED.replace("MODULE", module).replace("MAIN", name)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "discover: stopped\n")
    done = subprocess.run([sys.executable, "-m", "discover", "list", "no"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("discover: ")


def test_ctrl_c_before_a_search_begins_is_one_line_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "discover: stopped before the search began; nothing is lost\n"
    monkeypatch.setattr(session, "configure", stopped)
    monkeypatch.setattr(runs, "find", stopped)
    for command in ("search --space lion_like", "search --space lion_like --json", "resume last"):
        assert run(capsys, *command.split()) == (130, "", line)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("after", [0, 1])
def test_ctrl_c_at_once_says_what_is_kept_and_how_to_go_on(
    after: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from discover.flight import Flight

    Path("tiny.yaml").write_text(TINY)
    launch = Flight.launch

    def launched(self: Flight, number: int) -> None:
        if number == 2 * after:  # proposed when 0 is in the archive, and the first of all
            raise KeyboardInterrupt
        launch(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Flight, "launch", launched)
        options = ("--space", "tiny.yaml", "--candidates", "8", "--workers", "0", "--out", "out", "--json")
        code, out, err = run(capsys, "search", *options)
    what = "at once; what is stored is kept" if after else "before a generation was done; nothing is lost"
    assert (code, out) == (130, "")
    assert err.endswith(f"discover: stopped {what}, 'discover resume out' goes on\n")
    code, out, err = run(capsys, "resume", "out", "--json")
    assert (code, json.loads(out)["trained"] >= 8) == (0, True)
    assert ("goes on after 1 generations" in err) == bool(after)


def test_ctrl_c_waits_for_work_where_there_is_any_and_sigterm_always_does() -> None:
    from discover.watch import interruptible

    said: list[str] = []
    for at_work, sent in ((True, signal.SIGINT), (True, signal.SIGTERM), (False, signal.SIGTERM)):
        with interruptible(said.append, lambda at_work=at_work: at_work) as asked:  # type: ignore[misc]
            assert not asked()
            os.kill(os.getpid(), sent)
            assert asked()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), sent)
    assert len(said) == 3
    with interruptible(said.append, lambda: False) as asked:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert asked()  # where Python dropped what was raised, the search ends all the same
    assert len(said) == 3


# Rules ------------------------------------------------------------------------------------------------------------


def test_show_prints_a_rule_that_reads_back_as_the_same_rule(capsys: pytest.CaptureFixture[str]) -> None:
    for rule in (*dsl.names(), "ema_nesterov(adamw)"):
        code, out, _ = run(capsys, "show", rule)
        assert code == 0
        assert dsl.parse(out) == dsl.load(rule)


def test_show_prints_a_formula(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "show", "lion", "--latex")[1] == (
        r"""\begin{aligned}
u &= \operatorname{sign}\left(\beta_1 m_{t-1} + (1 - \beta_1) g_t\right) \\
m_t &= \beta_2 m_{t-1} + (1 - \beta_2) g_t \\
\theta_t &= \theta_{t-1} - \eta \left(u + \lambda \theta_{t-1}\right)
\end{aligned}
"""
    )


@pytest.mark.parametrize("rule", [name if not dsl.load(name).rules else f"{name}(adamw)" for name in dsl.names()])
def test_every_rule_has_a_formula_with_balanced_braces(rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "show", rule, "--latex")
    depth = 0
    for brace in re.findall(r"[{}]", out):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    assert out.count(r"\left") == out.count(r"\right")


def test_show_gives_facts_to_people_and_to_machines(capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(run(capsys, "show", "adamw", "--json")[1])
    assert (facts["state_bytes"], facts["degree"], facts["odd"]) == (8.0, 0.0, True)
    assert facts["length"] == 13
    assert dsl.parse(facts["text"]) == dsl.load("adamw")
    assert re.search(r"^state_bytes +8\.0$", run(capsys, "show", "adamw", "--properties")[1], re.MULTILINE)


def test_identify_names_the_rule_or_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "identify", "lion") == (0, "lion: is lion\n", "")
    found = json.loads(run(capsys, "identify", "lion", "--json")[1])
    assert (found["nearest"], found["exact"], found["similarity"]) == ("lion", True, 1.0)


def test_a_found_rule_is_registered_and_then_shown_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    made("runs/alpha", trained=4)
    code, out, _ = run(capsys, "register", "last", "--name", "mine", "--rank", "2")
    assert code == 0
    assert out.startswith("registered ")
    assert dsl.parse(run(capsys, "show", "mine")[1]).body == dsl.parse(run(capsys, "show", "alpha@2")[1]).body
    rows = json.loads(run(capsys, "list", "rules", "--json")[1])
    assert {"rule": "mine", "kind": "registered"}.items() <= rows[-1].items()


def test_a_rule_with_settings_is_a_rule_for_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    rule = "muon(adam_lr_ratio=1)"
    assert dsl.parse(run(capsys, "show", rule)[1]) == dsl.load("muon").with_defaults({"adam_lr_ratio": 1})
    assert run(capsys, "identify", rule)[1] == "muon: is muon with adam_lr_ratio=1\n"
    assert run(capsys, "register", rule, "--name", "muon_1")[0] == 0
    assert run(capsys, "show", "muon_1")[1] == run(capsys, "show", rule)[1].replace("def muon(", "def muon_1(")
    assert run(capsys, "export", rule, "-o", "muon_1.py")[0] == 0
    made: dict[str, Any] = {}
    exec(Path("muon_1.py").read_text(), made)
    assert made["Muon"]([torch.ones(2, 2, requires_grad=True)]).param_groups[0]["adam_lr_ratio"] == 1
    assert run(capsys, "register", "ema_nesterov(muon_1, gamma=0.9)", "--name", "fast")[0] == 0
    assert dsl.load("fast").defaults["gamma"] == 0.9


def test_a_place_of_a_run_is_registered_with_settings(capsys: pytest.CaptureFixture[str]) -> None:
    made("runs/alpha", trained=4)
    assert run(capsys, "register", "last@2(lr=0.2)", "--name", "mine")[0] == 0
    assert dsl.load("mine").defaults["lr"] == 0.2


@pytest.mark.parametrize("option", ["-o", "--out", "--output"])
def test_an_exported_rule_is_python(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "export", "lion", option, "out/my_lion.py") == (0, "wrote out/my_lion.py\n", "")
    compile(Path("out/my_lion.py").read_text(), "my_lion.py", "exec")


# Lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["rules", "tasks", "spaces", "runs"])
def test_lists_are_the_same_for_people_and_machines(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    made("runs/alpha", trained=4)
    code, out, err = run(capsys, "list", what)
    assert (code, err) == (0, "")
    rows = json.loads(run(capsys, "list", what, "--json")[1])
    assert len(out.splitlines()) >= len(rows) + 1
    for row in rows:
        assert next(iter(row.values())) in out


def test_a_list_of_runs_says_how_and_on_what_each_searched_where_there_is_room(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made("runs/alpha", trained=4)
    (row,) = json.loads(run(capsys, "list", "runs", "--json")[1])
    tasks = ["digits_mlp", "digits_autoencoder(horizon=60)", "bytes_mlp(horizon=120)"]
    assert (row["algorithm"], row["tasks"]) == ("evolution", tasks)
    assert "evolution" in (wide := run(capsys, "list", "runs")[1])
    assert ", ".join(tasks) in wide
    monkeypatch.setenv("COLUMNS", "110")
    assert "evolution" in (middle := run(capsys, "list", "runs")[1])
    assert "digits_mlp" not in middle
    monkeypatch.setenv("COLUMNS", "80")
    assert "evolution" not in run(capsys, "list", "runs")[1]


def test_an_empty_list_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "list", "runs") == (0, "no runs yet\n", "")
    assert run(capsys, "list", "runs", "--json") == (0, "[]\n", "")


def test_help_and_lists_of_rules_spaces_and_runs_do_not_wait_for_torch() -> None:
    for line in ("--help", "search --help", "list rules", "list spaces", "list runs", "show lion", "show lion --latex"):
        script = f"import sys; from discover.cli import main; main({line.split()}); sys.exit('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT)}, capture_output=True)
        assert done.returncode == 0, line


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_shown_whole(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich takes what stands in brackets for markup, and leaves it out; and it breaks lines where the source does."""
    monkeypatch.setenv("COLUMNS", "1000")
    command = COMMANDS[name]
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    lines = [" ".join(line.strip("│ ").split()) for line in out.splitlines()]
    texts = [getattr(param, "help", None) for param in command.params]
    for text in filter(None, texts):
        assert any(text in line for line in lines), text
    assert command.help
    for paragraph in command.help.split("\n\n"):
        assert paragraph in lines


def test_discover_alone_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys)
    assert code == 0
    for command in ("search", "resume", "show", "list", "register", "export", "identify"):
        assert command in out


# Searching --------------------------------------------------------------------------------------------------------

KEYS = {"run", "proposed", "rejected", "duplicates", "trained", "distinct", "seconds", "model_steps", "best"}


def searched(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    Path("tiny.yaml").write_text(TINY)
    argv = ("search", "--space", "tiny.yaml", "--candidates", "8", "--workers", "0", "--json", *more)
    code, out, err = run(capsys, *argv)
    assert code == 0, err
    result: dict[str, Any] = json.loads(out)
    return result


def test_a_search_prints_its_counts_and_its_best_rule_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    result = searched(capsys, "--out", "out")
    assert result.keys() >= KEYS
    assert result["proposed"] == sum(result["rejected"].values()) + result["duplicates"] + result["trained"]
    assert result["best"].keys() >= {"rule", "score", "expected", "file"}
    assert dsl.load(result["best"]["file"]) == dsl.parse(result["best"]["rule"])
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "archive.sqlite",
        "best.rule",
        "lock",
        "manifest.json",
    ]


def test_each_session_leaves_its_command_as_it_means_the_same_in_any_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path.cwd()
    Path("own.rule").write_text("def own(p, g, *, lr=0.1):\n    p = p - lr * sign(g)\n")
    searched(capsys, "--out", "a b", "--warm-start", "own.rule(lr=0.2)", "--warm-start", "lion", "--target", "9")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert run(capsys, "resume", "../a b", "--candidates=12", "--workers", "0")[0] == 0
    with runs.resume("../a b", budget=Budget(candidates=16)) as resumed:
        list(session.search(resumed))
    manifest = read_manifest(here / "a b")
    with Archive.read(here / "a b" / "archive.sqlite") as archive:
        sessions = sessions_of(manifest, archive, archive.totals().generations)
    assert [each["command"] for each in sessions] == [
        f"discover search --space {here}/tiny.yaml --warm-start '{here}/own.rule(lr=0.2)' --warm-start lion"
        f" --candidates 8 --target 9.0 --workers 0 --seed 0 --out '{here}/a b' --json",
        f"discover resume '{here}/elsewhere/../a b' --candidates 12 --workers 0",
        "",
    ]
    for each in sessions:
        assert (each["versions"], each["hardware"]) == (manifest.versions, host())


def test_a_search_shows_its_progress_its_leaderboard_and_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    Path("tiny.yaml").write_text(TINY.replace("]}", "], select: [quadratic], final: [digits_mlp]}", 1))
    code, out, err = run(capsys, "search", "--space", "tiny.yaml", "--candidates", "8", "--workers", "0", "--out", "o")
    assert (code, err) == (0, "")
    for text in (
        "evolution in space tiny, seed 0",
        "generation 0:",
        "nearest known rule",
        "proposed:",
        "where the time",
    ):
        assert text in out
    for command in ("show o@1 --latex", "register o --name my_rule", "report o", "promote o", "resume o --time 10m"):
        assert f"\n  discover {command}\n" in out
    code, out, _ = run(capsys, "resume", "o", "--candidates", "16")
    assert code == 0
    assert "goes on after " in out


def test_a_search_that_cannot_start_leaves_no_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from discover import workers
    from discover.errors import UserError

    def no_cluster(*_: object) -> None:
        raise UserError("--ray-address nowhere: no Ray cluster answers there")

    monkeypatch.setattr(workers, "start", no_cluster)
    Path("tiny.yaml").write_text(TINY)
    code, _, err = run(capsys, "search", "--space", "tiny.yaml", "--ray-address", "nowhere", "--out", "out")
    assert (code, err) == (2, "discover: --ray-address nowhere: no Ray cluster answers there\n")
    assert not Path("out").exists()


def test_own_tasks_are_searched_on(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.py").write_text(
        "from tasks.breast_cancer import BreastCancer\n\nclass Mine(BreastCancer):\n    name = 'mine'\n"
    )
    searched(capsys, "--task", "own.py:Mine", "--out", "out")
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["configuration"]["space"]["tasks"]["search"] == [f"{Path('own.py').absolute()}:Mine"]


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "workers"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGTERM, 1)])
def test_an_interrupted_search_ends_cleanly_and_says_how_to_go_on(sent: signal.Signals, workers: int) -> None:
    """With a worker too: Ray has a handler of its own."""
    Path("tiny.yaml").write_text(TINY)
    command = [sys.executable, "-u", "-m", "discover.cli", "search", "--space", "tiny.yaml", "--time", "10m"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, "--workers", str(workers), "--out", "out"], stdout=subprocess.PIPE, env=environment, text=True
    ) as search:
        assert search.stdout is not None
        for line in search.stdout:
            if "generation 0:" in line:
                break
        search.send_signal(sent)
        rest = search.stdout.read()
    assert search.returncode == 0
    assert "interrupted; resume with: discover resume out" in rest
    assert json.loads(Path("out/manifest.json").read_text())["configuration"]["seconds"] == 600.0


def test_what_ctrl_c_ended_leaves_with_130_wherever_it_came() -> None:
    text = "import sys\nfrom discover.errors import stopped\ntry:\n    exec('raise KeyboardInterrupt')\n"
    Path("ends.py").write_text(text + "except KeyboardInterrupt:\n    sys.exit(stopped('once\\nor twice'))\n")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:."}
    done = subprocess.run([sys.executable, "-m", "ends"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "discover: once or twice\n")


@pytest.mark.slow
@pytest.mark.parametrize("line", ["run out in ", "gradients: "])
def test_ctrl_c_while_workers_start_is_one_line(line: str) -> None:
    Path("tiny.yaml").write_text(TINY)
    command = [sys.executable, "-u", "-m", "discover.cli", "search", "--space", "tiny.yaml", "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, "--out", "out"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as search:
        assert search.stdout is not None
        for said in search.stdout:
            if said.startswith(line):
                break
        search.send_signal(signal.SIGINT)
        _, err = search.communicate(timeout=120)
    assert search.returncode == 130
    assert err.endswith(
        "discover: stopped before a generation was done; nothing is lost, 'discover resume out' goes on\n"
    )
    assert "Traceback" not in err
