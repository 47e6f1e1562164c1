"""What is typed to run something, read with and without the command line's library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pytest
import typer
from hypothesis import example, given
from hypothesis import strategies as st

from hostler.gateway.cli.main import app
from hostler.gateway.cli.start_options import Command, LogFormat, LogLevel, Start, read_start

LIBRARY = typer.main.get_command(app)
FIELDS = {field for field in Start.__struct_fields__ if field != "command"}


def read_by_the_library(arguments: Sequence[str]) -> Start | None:
    """What the command line makes of it; `None` if it helps or complains instead."""
    try:
        with LIBRARY.commands[arguments[0]].make_context(arguments[0], list(arguments[1:])) as context:  # type: ignore[attr-defined]
            return Start(command=arguments[0], **context.params)
    except Exception:
        return None


WORDS = [
    *("up", "gateway", "supervisor", "--config", "-c", "--plain", "--log-level", "--log-format", "debug", "json", "plain"),
    *("a.yaml", "--config=a.yaml", "--log-level=info", "--log-format=auto", "-ca.yaml", "-c=a.yaml", "--", "-", ""),
    *("--plain=yes", "--help", "-h", "--conf", "--log-level=INFO", "--config=", "--log-level=", "--version", "ps"),
]  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=7), st.sampled_from([(), *((name,) for name in get_args(Command))]))
@example(["-c", "-"], ("gateway",))
@example(["-c", "a.yaml", "--config", "b.yaml"], ("gateway",))
def test_nothing_is_read_otherwise_than_by_the_library(words: list[str], command: tuple[str, ...]) -> None:
    arguments = [*command, *words]
    read = read_start(arguments)
    assert read is None or read == read_by_the_library(arguments)


@pytest.mark.parametrize("command", get_args(Command))
@pytest.mark.parametrize(
    ("words", "options"),
    [
        ((), {}),
        (("--config", "a.yaml"), {"config": "a.yaml"}),
        (("-c", "~/a b.yaml"), {"config": "~/a b.yaml"}),
        (("--config=a=b.yaml",), {"config": "a=b.yaml"}),
        (("--plain", "-c", "a.yaml"), {"plain": True, "config": "a.yaml"}),
        (("--log-format", "json", "--log-level=debug"), {"log_format": LogFormat.json, "log_level": LogLevel.debug}),
    ],
    ids=str,
)
def test_what_units_and_scripts_say_needs_no_library(
    command: Command, words: tuple[str, ...], options: dict[str, str]
) -> None:
    assert read_start([command, *words]) == read_by_the_library([command, *words]) == Start(command=command, **options)


@pytest.mark.parametrize("command", get_args(Command))
def test_the_library_knows_the_same_options(command: Command) -> None:
    known = LIBRARY.commands[command].params  # type: ignore[attr-defined]
    assert {option.name for option in known} == FIELDS
    for name in [name for option in known for name in option.opts]:
        typed = [[command, name], *([command, name, value] for value in ("a.yaml", *LogLevel, *LogFormat))]
        understood = [words for words in typed if read_by_the_library(words)]
        assert understood
        assert [read_start(words) for words in understood] == [read_by_the_library(words) for words in understood]


@pytest.mark.parametrize(
    "arguments",
    [
        ["gateway", "--help"], ["gateway", "--confg", "a"], ["gateway", "a.yaml"], ["gateway", "--config"],
        ["gateway", "--log-level", "loud"], ["--version"], ["ps"], [],
    ],
    ids=str,
)  # fmt: skip
def test_help_and_mistakes_are_left_to_the_library(arguments: list[str]) -> None:
    assert read_start(arguments) is None
