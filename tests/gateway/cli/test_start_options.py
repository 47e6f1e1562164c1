"""Start commands, read with and without typer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pytest
import typer
from hypothesis import example, given
from hypothesis import strategies as st

from hostler.gateway.cli.main import app
from hostler.gateway.cli.start_options import OPTIONS, LogFormat, LogLevel, StartCommand, StartOptions, read_plain

TYPER = typer.main.get_command(app)
#: The fields that each command sets.
FIELDS = {
    command: {option.field for option in OPTIONS if command in option.commands}
    | ({"paths"} if command == "up" else set())
    for command in get_args(StartCommand)
}


def read_by_typer(arguments: Sequence[str]) -> StartOptions | None:
    """`None` if it shows help or an error instead."""
    try:
        with TYPER.commands[arguments[0]].make_context(arguments[0], list(arguments[1:])) as context:  # type: ignore[attr-defined]
            return StartOptions(command=arguments[0], **context.params)
    except Exception:
        return None


WORDS = [
    *("up", "gateway", "supervisor", "--config", "-c", "--plain", "--log-level", "--log-format", "debug", "json", "plain"),
    *("a.yaml", "--config=a.yaml", "--log-level=info", "--log-format=auto", "-ca.yaml", "-c=a.yaml", "--", "-", ""),
    *("models", "--listen", "--listen=:80", "--key", "--save"),
    *("--plain=yes", "--help", "-h", "--conf", "--log-level=INFO", "--config=", "--log-level=", "--version", "ps"),
]  # fmt: skip


@given(
    st.lists(st.sampled_from(WORDS), max_size=7), st.sampled_from([(), *((name,) for name in get_args(StartCommand))])
)
@example(["-c", "-"], ("gateway",))
@example(["-c", "a.yaml", "--config", "b.yaml"], ("gateway",))
def test_plain_forms_are_read_as_typer_reads_them(words: list[str], command: tuple[str, ...]) -> None:
    arguments = [*command, *words]
    read = read_plain(arguments)
    assert read is None or read == read_by_typer(arguments)


@pytest.mark.parametrize("command", get_args(StartCommand))
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
def test_forms_in_units_and_scripts_need_no_typer(
    command: StartCommand, words: tuple[str, ...], options: dict[str, str]
) -> None:
    assert read_plain([command, *words]) == read_by_typer([command, *words]) == StartOptions(command=command, **options)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("models", "a.gguf", "--plain"), {"paths": ("models", "a.gguf"), "plain": True}),
        (("--save", "models"), {"save": True, "paths": ("models",)}),
        (("--listen", ":8000", "--key=k"), {"listen": ":8000", "key": "k"}),
    ],
    ids=str,
)
def test_models_may_be_named(words: tuple[str, ...], options: dict[str, object]) -> None:
    assert read_plain(["up", *words]) == read_by_typer(["up", *words]) == StartOptions(command="up", **options)


def test_every_field_is_set_by_a_command() -> None:
    assert set().union(*FIELDS.values(), {"command"}) == set(StartOptions.__struct_fields__)


@pytest.mark.parametrize("command", get_args(StartCommand))
def test_typer_has_the_same_options(command: StartCommand) -> None:
    known = TYPER.commands[command].params  # type: ignore[attr-defined]
    assert {option.name for option in known} == FIELDS[command]
    for name in [name for option in known for name in option.opts]:
        if not name.startswith("-"):
            continue
        typed = [[command, name], *([command, name, value] for value in ("a.yaml", *LogLevel, *LogFormat))]
        understood = [words for words in typed if read_by_typer(words)]
        assert understood
        assert [read_plain(words) for words in understood] == [read_by_typer(words) for words in understood]


@pytest.mark.parametrize(
    "arguments",
    [
        ["gateway", "--help"], ["gateway", "--confg", "a"], ["gateway", "a.yaml"], ["gateway", "--config"],
        ["gateway", "--log-level", "loud"], ["--version"], ["ps"], [],
    ],
    ids=str,
)  # fmt: skip
def test_help_and_mistakes_are_left_to_typer(arguments: list[str]) -> None:
    assert read_plain(arguments) is None
