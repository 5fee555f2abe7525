"""Every rule has a formula that a LaTeX engine reads, in which nothing of Python is left; five of them read by eye."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dsl
from dsl.latex import latex
from dsl.latex_forms import FORMS, render
from dsl.latex_names import Names, symbol
from dsl.ops import OPS
from dsl.program import Call, Name

GOLDEN = Path(__file__).parent / "golden" / "formulas.tex"
WRAPPERS = [name for name in dsl.names() if dsl.load(name).rules]
RULES = [
    *(name for name in dsl.names() if name not in WRAPPERS),
    *(f"{wrapper}({base})" for wrapper in WRAPPERS for base in ("adamw", "muon")),
]
READ = ("adamw", "adafactor", "muon", "galore", "ema_nesterov(lion)")


# A reader of the part of LaTeX that KaTeX knows ---------------------------------------------------------------------

ATOMS = set(
    re.findall(
        r"\S+",
        r"""
        alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi omega
        odot cdot bmod top le ge ne nabla sum max min log tanh cos cosh quad gets , { }
        """,
    )
)
TAKES = {"frac": 2, "sqrt": 1, "hat": 1, "widehat": 1, "mathbf": 1, "mathcal": 1}
WORDS = {"text", "mathrm", "operatorname"}
DELIMITERS = {"(", ")", "[", "]", "|", ".", r"\lVert", r"\rVert", r"\langle", r"\rangle", r"\lfloor", r"\rfloor"} | {
    r"\{",
    r"\}",
}
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[A-Za-z]+|[0-9.]+|\s+|.", re.DOTALL)


class Reader:
    """Reads a formula; raises AssertionError where LaTeX would stop, and at what looks like a program's text."""

    def __init__(self, text: str) -> None:
        self.tokens = TOKEN.findall(text)
        self.at = 0

    def next(self) -> str:
        token = self.tokens[self.at]
        self.at += 1
        return token

    def peek(self) -> str:
        while self.at < len(self.tokens) and self.tokens[self.at].isspace():
            self.at += 1
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def until(self, *ends: str, table: bool = False) -> None:
        scripts: set[str] = set()
        while (token := self.peek()) not in ends:
            assert token, f"ends before {ends}"
            if token in "_^":
                assert token not in scripts, f"two {token} in a row near {self.near()}"
                scripts.add(self.next())
                self.one()
            elif token == "'":
                assert "^" not in scripts, f"a prime after a superscript near {self.near()}"
                assert "_" not in scripts, f"a prime after a subscript near {self.near()}"
                while self.peek() == "'":
                    self.next()
                scripts.add("^")
            elif token in ("&", r"\\"):
                assert table, f"{token} outside a table near {self.near()}"
                self.next()
                scripts.clear()
            else:
                self.one()
                scripts.clear()
        self.next()

    def one(self) -> None:
        token = self.peek()
        if token == "{":
            self.next()
            self.until("}")
        elif token == r"\left":
            self.next()
            assert self.delimiter() in DELIMITERS
            self.until(r"\right")
            assert self.delimiter() in DELIMITERS
        elif token == r"\begin":
            self.next()
            name = self.word()
            assert name in ("aligned", "cases")
            self.until(r"\end", table=True)
            assert self.word() == name
        elif token.startswith("\\") and (name := token[1:]) in TAKES:
            self.next()
            for _ in range(TAKES[name]):
                assert self.peek() == "{"
                self.one()
        elif token.startswith("\\") and token[1:] in WORDS:
            self.next()
            assert re.fullmatch(r"[A-Za-z0-9 :]+", self.word())
        elif token.startswith("\\"):
            assert token[1:] in ATOMS, f"unknown {token}"
            self.next()
        else:
            assert not token.isalpha() or len(token) == 1, f"a bare word: {token}"
            assert token.isalpha() or re.fullmatch(r"[0-9]+(\.[0-9]+)?|[-+=<>()\[\],;:/|]", token), f"{token!r}"
            self.next()

    def delimiter(self) -> str:
        self.peek()
        return self.next()

    def word(self) -> str:
        assert self.peek() == "{"
        self.next()
        text = ""
        while self.tokens[self.at] != "}":
            text += self.next()
        self.next()
        return text

    def near(self) -> str:
        return "".join(self.tokens[max(0, self.at - 12) : self.at + 3])


def read(text: str) -> None:
    """Raises AssertionError or IndexError where a LaTeX engine would stop."""
    reader = Reader(text + "}")
    reader.until("}")
    assert not reader.peek()


# Laws ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_a_latex_engine_reads_every_rules_formula(rule: str) -> None:
    formula = latex(dsl.load(rule))
    read(formula)
    assert r"\_" not in formula
    assert "**" not in formula


@pytest.mark.parametrize(
    "wrong", [r"\begin{aligned} a \end{cases}", "a_b_c", "{a", r"\left( a", r"\frac{a}", "beta", r"\text{a_b}", r"\foo"]
)
def test_the_reader_stops_at_what_latex_refuses(wrong: str) -> None:
    with pytest.raises((AssertionError, IndexError)):
        read(wrong)


@pytest.mark.parametrize("name", [op.name for op in OPS.values() if not op.name.startswith("draw_")])
def test_every_operator_has_a_form(name: str) -> None:
    names = Names(dsl.load("adamw"))
    args = tuple(Name(each) for each in ("m", "v", "p", "g")[: len(OPS[name].params)])
    text = render(Call(name, args), names)
    read(text)
    assert FORMS.get(name) or r"\operatorname" in text


NAMES = {
    "beta1": r"\beta_1",
    "beta2_decay": r"\beta_{2,\text{decay}}",
    "adam_beta1": r"\beta_{1,\text{adam}}",
    "g_prev": r"g_{\text{prev}}",
    "lr_max": r"\eta_{\max}",
    "weight_decay": r"\lambda",
    "threshold": r"\mathrm{threshold}",
    "row_norm_max": r"\text{row norm max}",
    "m1": "m_1",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_are_written_as_papers_write_them(name: str) -> None:
    assert symbol(name).text() == NAMES[name]


def test_two_names_never_look_alike() -> None:
    for rule in RULES:
        symbols = list(Names(dsl.load(rule)).symbols.values())
        assert len(set(symbols)) == len(symbols)


def test_formulas_of_five_rules_are_the_golden_ones() -> None:
    assert "\n\n".join(f"% {rule}\n{latex(dsl.load(rule))}" for rule in READ) + "\n" == GOLDEN.read_text()


def test_a_branch_that_leaves_a_value_alone_says_so() -> None:
    program = dsl.check(
        dsl.parse("def f(p, g, *, lr=1):\n    u = g\n    if matrix(p):\n        u = sign(g)\n    p = p - lr * u\n")
    )
    assert latex(program).split("\n")[1:3] == [
        r"u &= \begin{cases} \operatorname{sign}\left(g_t\right) & \text{if a matrix} \\ g_t & \text{otherwise} "
        r"\end{cases} \\",
        r"\theta_t &= \theta_{t-1} - \eta u",
    ]
