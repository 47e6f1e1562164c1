"""`python -m hostler.gateway`, and the `hostler` command.

What runs for long and is asked for plainly starts without the command line's library.
"""

from __future__ import annotations

import os
import sys

from hostler.gateway.cli.start_options import FAILED, INTERRUPTED, read_start


def main() -> None:
    """Run the command line. What nobody has thought of is told in one line, too."""
    try:
        start = None if os.environ.get("_HOSTLER_COMPLETE") else read_start(sys.argv[1:])
        if start is None:
            from hostler.gateway.cli.main import app

            app()
        else:
            from hostler.gateway.cli.launch import launch

            sys.exit(launch(start))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if os.environ.get("HOSTLER_TRACEBACK"):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        sys.stderr.write(f"hostler: this should not have happened: {said}; HOSTLER_TRACEBACK=1 shows where it did\n")
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
