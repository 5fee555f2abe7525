"""The language of update rules: programs as data, printed, checked, fingerprinted and turned into PyTorch code."""

from dsl.behaviour import behaviour_hash
from dsl.canonical import structure_hash
from dsl.check import check
from dsl.compose import apply
from dsl.dead import strip_dead
from dsl.fingerprint import Fingerprint, fingerprint
from dsl.flatten import flatten, tidy, with_literals
from dsl.format import format
from dsl.library import load, names
from dsl.parse import parse
from dsl.program import Facts, Program, RuleError

__all__ = [
    "Facts",
    "Fingerprint",
    "Program",
    "RuleError",
    "apply",
    "behaviour_hash",
    "check",
    "fingerprint",
    "flatten",
    "format",
    "load",
    "names",
    "parse",
    "strip_dead",
    "structure_hash",
    "tidy",
    "with_literals",
]
