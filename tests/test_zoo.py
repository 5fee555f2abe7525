"""What a user sees of the zoo: every rule says where it comes from, and the page and the list say what is true."""

from __future__ import annotations

import pytest

import dsl
from dsl import docs, zoo
from dsl.graph import needs

SOURCES = {
    "The sign. Chen et al. 2023, arXiv:2302.06675.": (2023, "Chen et al. 2023", "https://arxiv.org/abs/2302.06675"),
    "A sum: two terms. Nesterov 1983; Sutskever et al. 2013.": (1983, "Nesterov 1983; Sutskever et al. 2013", ""),
    "Orthogonal. Jordan 2024, kellerjordan.github.io/posts/muon.": (
        2024,
        "Jordan 2024",
        "https://kellerjordan.github.io/posts/muon",
    ),
    "SGD: p - lr * g. Robbins & Monro 1951; weight decay is L2, in the gradient.": (1951, "Robbins & Monro 1951", ""),
    "Clips. Mikolov 2012, PhD thesis, Brno.": (2012, "Mikolov 2012, PhD thesis, Brno", ""),
    "The worst point. Foret et al. 2021, arXiv:2010.01412.": (
        2021,
        "Foret et al. 2021",
        "https://arxiv.org/abs/2010.01412",
    ),
}


@pytest.mark.parametrize("line", SOURCES)
def test_source_is_read_from_the_first_line(line: str) -> None:
    found = zoo.source(line + "\n\n    More in 1999.")
    assert found is not None
    assert (found.year, found.text, found.link) == SOURCES[line]
    assert line.startswith(found.about)


def test_a_line_without_a_year_names_no_source() -> None:
    assert zoo.source("Found by a search, see arXiv:2010.01412.") is None


@pytest.mark.parametrize("name", dsl.names())
def test_every_rule_says_what_it_does_and_where_it_comes_from(name: str) -> None:
    found = zoo.entry(name).source
    assert found is not None, "the first line of the docstring must end 'Author et al. YEAR, arXiv:NUMBER.'"
    assert 1900 < found.year < 2100
    assert len(found.about) > 10
    assert len(found.about) < len(dsl.load(name).doc.partition("\n")[0])


def test_every_rule_is_in_one_group() -> None:
    listed = [entry.name.partition("(")[0] for entries in zoo.entries().values() for entry in entries]
    assert sorted(listed) == dsl.names()
    assert all(zoo.entries().values())


@pytest.mark.parametrize("name", dsl.names())
def test_what_a_rule_is_listed_with_is_true_of_it(name: str) -> None:
    entry, program = zoo.entry(name), dsl.load(name)
    assert [slot.partition(":")[0] for slot in entry.state] == [slot.name for slot in program.slots]
    assert (entry.kind == "wrapper") == bool(program.rules) == entry.name.endswith("(RULE)")
    if program.rules:
        composed = needs(dsl.load(f"{name}(sgd)"))
        assert entry.needs == str(composed)
    else:
        assert entry.needs == str(needs(program))
        assert entry.state_bytes == dsl.properties.of(program).state_bytes


def test_bytes_are_those_of_a_large_matrix() -> None:
    found = {
        name: zoo.entry(name).state_bytes for name in ("sgd", "lion", "adamw", "adafactor", "adam8bit", "lookahead")
    }
    assert found == {
        "sgd": 0.0,
        "lion": 4.0,
        "adamw": 8.0,
        "adafactor": round(4 * 2 * 4096 / 4096**2, 3),
        "adam8bit": round(2 + 2 * 4 / 256, 3),
        "lookahead": 4.0,
    }


def test_the_page_is_as_it_should_be() -> None:
    assert docs.zoo_page() == docs.ZOO.read_text(encoding="utf-8"), "run `make docs`"


def test_no_cell_breaks_the_pages_tables() -> None:
    width = 0
    for line in docs.zoo_page().split("\n"):
        columns = line.replace("\\|", "").count("|")
        assert columns == width or not (width and columns), line
        width = columns
