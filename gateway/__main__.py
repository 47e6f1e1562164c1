"""`python -m hostler.gateway`, and the `hostler` command."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line. What nobody has thought of is told in one line, too."""
    from hostler.gateway.cli import app

    try:
        app()
    except Exception as error:
        if os.environ.get("HOSTLER_TRACEBACK"):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        sys.stderr.write(f"hostler: this should not have happened: {said}; HOSTLER_TRACEBACK=1 shows where it did\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
