"""Durations as people write them: 90s, 10m, 1h30m."""

from __future__ import annotations

import re

from discover.errors import UserError

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_FORM = re.compile(
    r"(?:(?P<d>\d+(?:\.\d+)?)d)?(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?"
)


def parse_duration(text: str) -> float:
    """Seconds of a duration.

    >>> parse_duration("1h30m"), parse_duration("90s"), parse_duration("0.5h")
    (5400.0, 90.0, 1800.0)

    Raises:
        UserError: not a duration, or not longer than nothing.
    """
    match = _FORM.fullmatch(text.strip())
    seconds = sum(float(number) * _UNITS[unit] for unit, number in match.groupdict().items() if number) if match else 0
    if seconds <= 0:
        raise UserError(f"'{text}' is not a duration; write 90s, 10m, 2h or 1h30m")
    return seconds


def format_duration(seconds: float) -> str:
    """A duration to read, to about two digits.

    >>> format_duration(5400), format_duration(90), format_duration(3.14), format_duration(0.012)
    ('1h30m', '1m30s', '3.1s', '0.01s')
    """
    if seconds < 1:
        return f"{seconds:.2f}s"
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
