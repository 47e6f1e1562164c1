"""`python -m hostler.gateway`, and the `hostler` command."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from hostler.gateway.cli import app

    app()


if __name__ == "__main__":
    main()
