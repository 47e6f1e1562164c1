"""`python -m hostler.gateway`, and the `hostler` command."""

from __future__ import annotations

import os
import sys

from hostler.gateway.cli.start_options import FAILED, INTERRUPTED, read_plain


def main() -> None:
    """Run the command line; an unexpected error is one line, too. typer is only imported where it is needed."""
    try:
        options = None if os.environ.get("_HOSTLER_COMPLETE") else read_plain(sys.argv[1:])
        if options is None:
            from hostler.gateway.cli.main import app

            app()
        else:
            from hostler.gateway.cli.launch import launch

            sys.exit(launch(options))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if os.environ.get("HOSTLER_TRACEBACK"):
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        sys.stderr.write(f"hostler: internal error: {text}. Please report it; HOSTLER_TRACEBACK=1 shows details.\n")
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
