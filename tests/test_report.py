"""A report is one valid page that needs nothing else and says what the archive says, whatever state the run is in."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import dsl
from discover import cli, runs
from discover.budget import Budget
from discover.manifest import Configuration
from discover.records import (
    REFERENCE_LOST,
    Candidate,
    Evaluation,
    Generation,
    GenerationRecord,
    Incident,
)
from discover.report_data import curve_of, gather
from discover.report_page import page
from discover.report_runs import at_steps, compared, grouped
from discover.report_svg import Series, bars, plot, short, ticks
from discover.space import Space
from tests.fresh import confirmed

RULE = "def rule_{0}(p, g, m: zeros, *, lr=0.1):\n    m = lerp(m, g, 0.{0})\n    p = p - lr * sign(m)\n"
VOID = {"meta", "br", "hr", "img", "input", "link"}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISCOVER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("DISCOVER_RUNS_DIR", raising=False)
    monkeypatch.setenv("COLUMNS", "250")


def configuration(seed: int = 3, algorithm: str = "evolution") -> Configuration:
    return Configuration(
        space=Space.load("lion_like"),
        ancestors=(dsl.format(dsl.load("adamw")),),
        algorithm=algorithm,
        seed=seed,
        compiled_from={"digits_mlp": 0, "bytes_mlp": None},
        native=True,
        budget=Budget(time="1m", candidates=10),
        workers=2,
    )


def generation(number: int) -> Generation:
    """Of three candidates: one trained and confirmed, one duplicate, one that diverged; the rest were rejected."""
    first = 3 * number
    parents = (first - 3,) if number else ()
    text = RULE.format(number + 1)
    origin, fitness = "insert: u = sign(<m>)", 0.01 * number
    names = (f"s{first}", f"b{first}")
    good = Candidate(first, number, origin, parents, text, *names, "trained", fitness=fitness, rung=1)
    same = replace(good, id=first + 1, status="duplicate", duplicate_of=first, rung=None)
    lost = replace(good, id=first + 2, behaviour=f"x{first}", status="diverged", fitness=-1.0, rung=0, reason="<nan>")
    scored = Evaluation(
        first, number, "confirm", 0, "digits_mlp", 7, 1.0, 1.0, (0.1,), ((0.5,),), 0.1, 0.5, 0.6, 0.1 * number, 40
    )
    record = GenerationRecord(number, 10, {"not odd": 5, "<&>": 2}, 1, 2, (0.01,), 1000, 0.02 * number, (), ())
    confirmation = confirmed(first, number, 0.1 * number, 0.01, 4)
    return Generation(record, (good, same, lost), (scored,), (confirmation,))


def made(out: str, generations: int, *, seed: int = 3, algorithm: str = "evolution", keep: bool = False) -> Path:
    """A run; `keep` leaves it open, as a search does."""
    run = runs.create(configuration(seed, algorithm), out=Path(out), command=["discover", "search"])
    with run.archive() as archive:
        for number in range(generations):
            archive.commit_generation(generation(number), {"gate": 2.0, "idle": 6.0, "train": 20.0})
        archive.log([Incident("worker lost", "of node <a>", 1)] if generations else [])
    if not keep:
        run.close()
    else:
        OPEN.append(run)
    return Path(out)


OPEN: list[runs.Run] = []


class Strict(HTMLParser):
    """Every element is closed where it must be, and nothing points outside."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.words: list[str] = []
        self.titles: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "img", "object", "embed"), tag
        for name, value in attrs:
            assert name not in ("src", "href", "srcset", "action", "data", "background"), (tag, name, value)
            assert "url(" not in (value or "")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        assert "svg" in self.stack, f"<{tag}/> closes itself outside of SVG"

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.stack and self.stack[-1] == "h2":
            self.titles.append(data)


def read(text: str) -> Strict:
    """A page, valid and self-contained, or an assertion fails."""
    assert text.startswith("<!DOCTYPE html>")
    assert "@import" not in text
    assert "url(" not in text
    assert not re.search(r"https?://", text)
    parser = Strict()
    parser.feed(text)
    parser.close()
    assert parser.stack == []
    for numbers in re.findall(r' (?:d|x|y|cx|cy|x1|y2|width|height)="([^"]*)"', text):
        assert "nan" not in numbers
        assert "inf" not in numbers
    return parser


# The page -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generations", [0, 1, 5])
def test_a_page_is_valid_and_needs_nothing_else(generations: int) -> None:
    parsed = read(page(gather(made("run", generations))))
    assert parsed.titles == [
        "In short",
        "Leaderboard",
        "Pareto front",
        "Funnel",
        "Fitness",
        "Lineage of the best",
        "Where the time went",
        "On tasks that the search did not see",
        "Certificate",
        "Events",
        "Configuration",
    ]


def test_a_page_says_what_the_archive_says() -> None:
    text = page(gather(made("run", 4)))
    words = " ".join(read(text).words)
    assert "+0.300 ±0.010 (4)" in words  # the leader, confirmed last
    assert "The front: fitness against bytes of state a parameter." in words
    assert "m = lerp(m, g, 0.4)" in words  # its rule
    assert "\\theta_t" in words  # its formula
    assert "4 programs from the first ancestor" in words
    assert "insert: u = sign(<m>)" in words  # escaped, and read back
    assert "rejected: <&>" in words
    assert "of node <a>" in words
    assert "40 (100.0%)" in words  # proposed
    assert "<m>" not in text
    assert "8s (25%)" in words or "8.0s (25%)" in words  # of gate
    assert "stopped" in words


def test_a_run_in_progress_can_be_read_and_says_so() -> None:
    folder = made("run", 2, keep=True)
    try:
        assert "running, 2 generations" in " ".join(read(page(gather(folder))).words)
    finally:
        OPEN.pop().close()


def test_what_promotion_added_is_drawn_wherever_it_stands() -> None:
    folder = made("run", 3)
    points = [
        {"generation": n, "candidate": 3 * n, "fitness": 0.1 * n, "score": 0.3 - 0.1 * n, "error": 0.02} for n in (0, 2)
    ]
    (folder / "promotion.json").write_text(json.dumps({"a": [1], "b": {"points": points}}))
    (folder / "certificate.json").write_text(json.dumps({"outcome": "none was <better>", "contests": [1]}))
    text = page(gather(folder))
    words = " ".join(read(text).words)
    assert "meta-overfitting curve" in words
    assert "none was <better>" in words
    assert text.count("<svg") == 7 + 1
    assert len(set(re.findall(r'aria-label="([^"]+)"', text))) == 8  # each plot says what it shows
    assert curve_of({"points": [{"generation": 1}]}) == []
    (folder / "certificate.md").write_text("# Certificate: <none>")
    assert "# Certificate: <none>" in read(page(gather(folder))).words
    (folder / "promotion.json").write_text("{")
    assert cli.main(["report", "run"]) == 2


def test_the_best_that_was_seen_never_gets_worse() -> None:
    """The archive has the best of each generation alone."""
    with runs.create(configuration(), out=Path("run")) as run, run.archive() as archive:
        for number, best in enumerate((None, 0.2, -0.1, None, 0.3)):
            one = generation(number)
            archive.commit_generation(replace(one, record=replace(one.record, best_fitness=best)), {})
    assert [m.seen for m in gather(Path("run")).moments] == [None, 0.2, 0.2, 0.2, 0.3]


def test_the_leader_at_each_moment_is_the_head_of_the_leaderboard_then() -> None:
    found = gather(made("run", 4))
    assert [m.leader for m in found.moments] == [0, 3, 6, 9]
    assert [m.proposed for m in found.moments] == [10, 20, 30, 40]
    assert [m.seconds for m in found.moments] == [8.0, 16.0, 24.0, 32.0]
    assert found.leaderboard[0].candidate.id == found.moments[-1].leader
    assert [c.id for c in found.lineage] == [0, 3, 6, 9]
    assert found.by_task == {"digits_mlp": (pytest.approx(0.3),)}
    assert found.rungs == (8, 4)
    assert found.statuses == {"trained": 4, "duplicate": 4, "diverged": 4}


def test_candidates_without_a_reference_are_no_lost_workers() -> None:
    with runs.create(configuration(), out=Path("run")) as run, run.archive() as archive:
        one = generation(0)
        good, _, lost = one.candidates
        unscored = replace(good, status="worker_lost", reason=REFERENCE_LOST, fitness=None)
        gone = replace(lost, status="worker_lost", reason="worker lost", fitness=None)
        archive.commit_generation(replace(one, candidates=(unscored, gone), confirmations=()), {})
    assert gather(Path("run")).statuses == {"reference lost": 1, "worker_lost": 1}


def test_a_report_is_written_to_the_run_or_where_one_says(capsys: pytest.CaptureFixture[str]) -> None:
    made("run", 2)
    assert cli.main(["report", "run"]) == 0
    assert Path("run/report.html").read_text().startswith("<!DOCTYPE html>")
    capsys.readouterr()
    assert cli.main(["report", "run", "--out", "there/x.html", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["file"], said["state"], said["best"]) == ("there/x.html", "stopped", pytest.approx(0.1))
    for line in (["report", "nowhere"], ["report", "run", "-o", "there"]):
        assert cli.main(line) == 2
        assert capsys.readouterr().err.count("\n") == 1


# Plots ----------------------------------------------------------------------------------------------------------------


def test_plots_leave_out_what_is_not_finite_and_fit_into_their_frame() -> None:
    points = [(float(x), math.nan if x == 3 else math.exp(x)) for x in range(8)]
    band = [(y - 1, y + 1) for _, y in points]
    for kind in ("line", "steps", "dots", "places"):
        both = [Series(points, "one <x>", kind, band), Series([(2.0, 5.0)], "two")]
        drawn = plot(both, "x", "y & z", "a < b", zero=True)
        numbers = [float(n) for n in re.findall(r"[ML]([\d.]+) [\d.]+", drawn)]
        assert all(0 <= n <= 640 for n in numbers)
        assert "nan" not in drawn
        assert "one &lt;x&gt;" in drawn
        assert 'aria-label="a &lt; b"' in drawn
    assert "nothing to draw" in plot([Series([])], "x", "y", "z")
    assert "nothing to draw" in bars([], "z")
    assert 'width="1.0"' in bars([("none", 0.0, "0"), ("all", 5.0, "5")], "z")


@pytest.mark.parametrize("seed", range(20))
def test_ticks_are_round_few_and_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = float(rng.normal() * 10.0 ** rng.integers(-3, 6))
    high = low + float(10.0 ** rng.uniform(-3, 6))
    found = ticks(low, high)
    assert 2 <= len(found) <= 12
    assert low - 1e-6 * abs(low) <= found[0] <= found[-1] <= high + 1e-6 * abs(high)
    assert len({short(x) for x in found}) == len(found)


# Side by side ---------------------------------------------------------------------------------------------------------


def test_seeds_of_one_search_are_taken_together_and_others_apart() -> None:
    found = [gather(made(f"r{seed}", 4 + seed, seed=seed)) for seed in range(3)]
    other = gather(made("other", 4, algorithm="random"))
    groups = grouped([*found, other])
    assert {name: len(own) for name, own in groups.items()} == {"lion_like evolution": 3, "lion_like random": 1}
    data = compared([*found, other])
    assert data["model_steps"] == [500 * point for point in range(1, 9)]  # as far as the shortest went
    own = data["groups"]["lion_like evolution"]
    middle = next(e for steps, e in zip(data["model_steps"], own["fitness"], strict=True) if steps == 3000)
    assert (middle["value"], middle["seeds"]) == (pytest.approx(0.2), 3)
    assert [each["seeds"] for each in own["fitness"]] == [0] + [3] * 7  # nobody is confirmed in half a generation
    assert own["end"]["model_steps"] == [4000, 5000, 6000]
    assert (own["end"]["value"], own["end"]["seeds"]) == (pytest.approx(0.4), 3)
    assert data["groups"]["lion_like random"]["end"]["model_steps"] == [4000]
    assert [one["proposed"] for one in data["runs"]] == [40, 50, 60, 40]
    assert math.isnan(at_steps(found, 5500)[0])


def test_runs_are_shown_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    made("one", 3, seed=1)
    made("two", 2, seed=2)
    made("empty", 0, seed=4)
    assert cli.main(["compare-runs", "one", "two", "empty"]) == 0
    said = capsys.readouterr().out
    for words in (
        "lion_like evolution (3 runs)",
        "(2) after 0 to 3000",  # one of the three has nothing yet
        "nothing was trained yet",
        "two: +0.100 ±0.010 (4)",
        "6 > 3",
        "not odd (15)",
    ):
        assert words in said
    assert cli.main(["compare-runs", "one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["confirmed"] == 3
    assert cli.main(["compare-runs", "empty", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model_steps"] == []
    assert cli.main(["compare-runs", "one", "./one"]) == 2
    assert "given twice" in capsys.readouterr().err
