"""The language of update rules: programs as data, printed, checked, fingerprinted and turned into PyTorch code."""

from dsl.check import check
from dsl.compose import apply
from dsl.format import format
from dsl.library import load, names
from dsl.parse import parse
from dsl.program import Facts, Program, RuleError

__all__ = ["Facts", "Program", "RuleError", "apply", "check", "format", "load", "names", "parse"]
