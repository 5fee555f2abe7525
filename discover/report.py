"""The command `discover report`: a run as one HTML file."""

from __future__ import annotations

import json
from pathlib import Path

from discover import runs
from discover.errors import UserError
from discover.files import write_whole
from discover.report_data import gather
from discover.report_page import page

REPORT = "report.html"


def run(text: str, *, out: Path | None, as_json: bool) -> None:
    """Writes a run's report, also while it is searching.

    Args:
        text: the run, as `runs.find` takes it.
        out: the file; None for report.html in the run's folder.
        as_json: print where it is, and a summary, as JSON.

    Raises:
        UserError: no such run, or the file cannot be written.
    """
    found = gather(runs.find(text))
    file = out or found.folder / REPORT
    if file.is_dir():
        raise UserError(f"'{file}' is a folder; name a file, such as {file / REPORT}")
    write_whole(file, page(found))
    if as_json:
        best = found.leaderboard[0] if found.leaderboard else None
        summary = {
            "file": str(file),
            "run": found.manifest.run,
            "state": found.state,
            "trained": found.totals.trained,
            "best": best and best.fitness,
        }
        print(json.dumps(summary, indent=2))
    else:
        print(f"wrote {file}")
