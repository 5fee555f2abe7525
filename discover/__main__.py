"""Where the command `discover` begins, also as `python -m discover`: Ctrl-C while the rest is imported is one line."""

from __future__ import annotations

import sys

from discover.errors import stopped


def main() -> int:
    """Runs `discover.cli.main` with the arguments of this process; its exit code."""
    try:
        from discover.cli import main as command

        return command()
    except KeyboardInterrupt:
        return stopped()


if __name__ == "__main__":
    sys.exit(main())
