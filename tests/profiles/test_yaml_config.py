"""Settings files: values, sizes and variables, and the error messages for mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hostler.profiles.yaml_config import DocumentError, Size, load, parse


class Queue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    max_waiting: int = 10
    room: Size | None = None


class Gateway(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    queue: Queue = Queue()
    token: str | None = None
    listen: tuple[str, ...] = ()
    quiet: bool = False


class Backend(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: str
    queues: tuple[Mapping[str, Queue], ...] = ()
    models: Mapping[str, str] = {}


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    gateway: Gateway = Gateway()
    backends: Mapping[str, Backend] = {}


ENV = {"SECRET": "sk-very-secret", "COUNT": "12", "SWITCH": "true", "ROOM": "2GiB", "EMPTY": ""}


def read(text: str) -> Settings:
    return load(text, "hostler.yaml", Settings, env=ENV)


def error_of(text: str) -> str:
    with pytest.raises(DocumentError) as caught:
        read(text)
    return str(caught.value)


BACKENDS = """\
backends:
  near: {url: "http://a"}
  far:
    # a comment
    url: http://b
    queues:
      - first: {max_waiting: 1}
      - second:
          max_waiting: 2
        third:
          room: ROOM
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "gateway:\n  queue:\n    max_waiting: ten\n",
            'hostler.yaml:3: gateway.queue.max_waiting: expected a whole number, got "ten"',
        ),
        (
            "gateway:\n  queue:\n    max_waitin: 1\n",
            "hostler.yaml:3: gateway.queue.max_waitin: unknown key, did you mean max_waiting?",
        ),
        (
            "gateway:\n  queue: {zzz: 1}\n",
            "hostler.yaml:2: gateway.queue.zzz: unknown key, valid keys: max_waiting, room",
        ),
        ("backends:\n  lan:\n    models: {}\n", "hostler.yaml:2: backends.lan: url is missing"),
        (
            BACKENDS.replace("ROOM", "lots"),
            'hostler.yaml:11: backends.far.queues[1].third.room: expected a size such as 9GiB, 512MB or 4096, got "lots"',
        ),
        (
            BACKENDS.replace("ROOM", "-1"),
            "hostler.yaml:11: backends.far.queues[1].third.room: expected a size such as 9GiB, 512MB or 4096, got -1",
        ),
        (
            BACKENDS.replace("room: ROOM", "rom: 1"),
            "hostler.yaml:11: backends.far.queues[1].third.rom: unknown key, did you mean room?",
        ),
        (
            BACKENDS.replace("max_waiting: 2", "max_waiting: 2.5"),
            "hostler.yaml:9: backends.far.queues[1].second.max_waiting: expected a whole number, got 2.5",
        ),
        (
            "gateway:\n  listen:\n    - a\n\n    - 8000\n",
            "hostler.yaml:5: gateway.listen[1]: expected text, got 8000 (put it in quotes)",
        ),
        ("gateway:\n  listen: a\n", 'hostler.yaml:2: gateway.listen: expected a list, got "a"'),
        ("gateway: 7\n", "hostler.yaml:1: gateway: expected a mapping, got 7"),
        ("- a\n", "hostler.yaml:1: expected a mapping, got a list"),
        ("gateway: {}\n\ngateway: {}\n", "hostler.yaml:3: gateway: duplicate key, first defined in line 1"),
        (
            "gateway:\n\tqueue: 1\n",
            "hostler.yaml:2: not valid YAML: found character '\\t' that cannot start any token; indent with spaces instead of tabs",
        ),
        (
            "gateway: !!python/name:os.system\n",
            "hostler.yaml:1: gateway: the tag !!python/name:os.system is not allowed",
        ),
        ("gateway: {}\n---\ngateway: {}\n", "hostler.yaml:2: not valid YAML: but found another document"),
        ("gateway:\n  token: ${env:NOPE}\n", "hostler.yaml:2: gateway.token: the environment variable NOPE is not set"),
        (
            "gateway:\n  token: ${HOME}\n",
            "hostler.yaml:2: gateway.token: ${HOME} is not a variable: write ${env:NAME} for a variable, or $${HOME} for the text",
        ),
    ],
)
def test_errors_name_the_place_and_the_remedy(text: str, expected: str) -> None:
    assert error_of(text) == expected


def test_numbers_that_other_processes_could_not_read_are_refused() -> None:
    with pytest.raises(
        DocumentError, match=r"x:1: count: expected a whole number, got .* \(the largest is 9223372036854775807\)"
    ):
        load(f"count: {2**64}", "x", Bounded, env={})
    assert load(f"count: {2**63 - 1}", "x", Bounded, env={}).count == 2**63 - 1
    with pytest.raises(DocumentError, match=r'got "12"$'):
        load('count: "12"', "x", Bounded, env={})


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("4096", 4096),
        ("9GiB", 9 * 1024**3),
        ("512MB", 512_000_000),
        ("1.5 GiB", 3 * 512 * 1024**2),
        ("4G", 4 * 1024**3),
    ],
)
def test_reads_sizes_with_units(written: str, size: int) -> None:
    room = read(f"gateway: {{queue: {{room: {written}}}}}").gateway.queue.room
    assert room == size
    assert isinstance(room, Size)


@pytest.mark.parametrize("written", ["-1", "true", "1.5", "9 apples", "[]", "''", "9GiB9", "9999999999TiB", "9" * 30])
def test_rejects_other_sizes(written: str) -> None:
    assert "gateway.queue.room: expected a size" in error_of(f"gateway: {{queue: {{room: {written}}}}}")


class Bounded(msgspec.Struct, frozen=True, kw_only=True):
    count: Annotated[int, msgspec.Meta(ge=1)] = 1
    every_s: Annotated[float, msgspec.Meta(gt=0)] | None = None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count: 0", "x:1: count: must be at least 1, got 0"),
        ("every_s: 0", "x:1: every_s: must be more than 0.0, got 0"),
        ("every_s: often", 'x:1: every_s: expected a number or null, got "often"'),
        ("every_s: true", "x:1: every_s: expected a number or null, got true"),
        ("count: ${env:N}", "x:1: count: must be at least 1, got ${env:N}"),
    ],
)
def test_numbers_out_of_bounds_are_named(text: str, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        load(text, "x", Bounded, env={"N": "-3"})
    assert str(caught.value) == message


def test_substitutes_variables_in_values_only() -> None:
    settings = read("gateway:\n  token: a-${env:SECRET}-$${env:SECRET}-$5\nbackends: {'${env:X}': {url: $$}}")
    assert settings.gateway.token == "a-sk-very-secret-${env:SECRET}-$5"
    assert settings.backends["${env:X}"].url == "$"


def test_converts_a_variable_to_the_expected_number_or_boolean() -> None:
    settings = read(
        "gateway: {quiet: '${env:SWITCH}', token: '${env:COUNT}', queue: {max_waiting: '${env:COUNT}', room: '${env:ROOM}'}}"
    )
    assert settings.gateway.queue == Queue(max_waiting=12, room=Size(2 * 1024**3))
    assert settings.gateway.quiet is True
    assert settings.gateway.token == "12"


@pytest.mark.parametrize(
    "text",
    [
        "gateway: {queue: {max_waiting: '${env:SECRET}'}}",
        "gateway: {queue: {max_waiting: 'a${env:SECRET}'}}",
        "gateway: {queue: {room: '${env:SECRET}'}}",
        "gateway: {queue: {room: 'x${env:SECRET}'}}",
    ],
)
def test_errors_show_the_name_of_a_variable_and_never_its_value(text: str) -> None:
    message = error_of(text)
    assert "${env:SECRET}" in message
    assert "sk-very" not in message


def test_errors_hide_values_of_keys_that_may_be_secret() -> None:
    assert (
        error_of("gateway: {token: 123456}")
        == "hostler.yaml:1: gateway.token: expected text or null, got a whole number"
    )


def test_an_empty_variable_does_not_garble_messages() -> None:
    text = "gateway: {token: '${env:EMPTY}', queue: {max_waiting: ten}}"
    assert error_of(text).endswith('gateway.queue.max_waiting: expected a whole number, got "ten"')


def test_a_section_without_values_is_empty() -> None:
    assert read("gateway:\n  listen:\n  queue:\nbackends:\n") == Settings()
    assert read("") == read("# nothing\n") == Settings()


def test_keeps_words_that_yaml_1_1_took_for_booleans() -> None:
    assert read("gateway: {listen: [on, off, yes, no, 0x, 1:30]}").gateway.listen == (
        "on",
        "off",
        "yes",
        "no",
        "0x",
        "1:30",
    )


def test_merges_anchors_and_lets_own_keys_win() -> None:
    settings = read("backends:\n  a: &a {url: x, models: {m: n}}\n  b:\n    <<: *a\n    url: y\n")
    assert settings.backends["b"] == Backend(url="y", models={"m": "n"})


def test_knows_the_line_of_every_value() -> None:
    document = parse(BACKENDS, "x.yaml", env={})
    assert document.line("backends", "far", "queues", 1, "third", "room") == 11
    assert document.line("backends", "far", "nowhere", "at", "all") == 3
    assert document.line() == 1


PIECES = ["a", ": ", "- ", "\n", "  ", "{", "}", "[", "]", "&a ", "*a", "<<: ", "!!x ", "'", '"', "|", ">", "${env:A}", "$", "#",
          "%", "? ", "1", ".", "_", "---\n", "~", "\0", "\ufeff", "ä"]  # fmt: skip


@settings(max_examples=200, deadline=None)
@example("&a : &a ")
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_any_text_gives_values_or_a_document_error(text: str) -> None:
    try:
        load(text, "x", Settings, env={"A": "b"})
    except DocumentError as error:
        assert str(error).startswith("x:")
