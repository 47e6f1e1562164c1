"""The command line as a whole: commands, their help, and the options that they share."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from hostler.gateway.cli.main import app

#: What fits beside the commands' names in a terminal of 80 columns.
WIDTH = 62

#: Commands that call no running gateway.
LOCAL = {
    "import",
    "config",
    "up",
    "gateway",
    "supervisor",
    "pull",
    "get",
    "check",
    "certificate",
    "schema",
    "keys",
    "profiles",
    "engine",
}


def commands(command: Any, *names: str) -> Iterator[tuple[str, Any]]:
    """All commands, by attributes: typer's groups are click's in some versions, its own in others."""
    if inner := getattr(command, "commands", None):
        for name, each in inner.items():
            yield from commands(each, *names, name)
    else:
        yield " ".join(names), command


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_text_begins_with_a_line_that_fits(name: str) -> None:
    first = inspect.cleandoc(COMMANDS[name].help or "").split("\n\n")[0]
    assert first[:1].isupper() and first.endswith(".")
    assert len(first) <= WIDTH


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_argument_is_explained(name: str) -> None:
    for parameter in COMMANDS[name].params:
        text = getattr(parameter, "help", None)
        assert text and text.endswith((".", ")")), parameter.name


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_share_their_options(name: str) -> None:
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert ("--config" in options) == (name not in ("schema", "certificate", "import"))
    assert ("--json" in options) == (name not in ("up", "gateway", "supervisor"))
    assert ({"--url", "--key-file"} <= options) == (name.split()[0] not in LOCAL)
