"""Changing one setting in a file without changing the rest of it."""

from __future__ import annotations

import pytest

from hostler.profiles.setting_edits import with_setting
from hostler.profiles.yaml_config import DocumentError, parse

MAIN = """\
# my home lab
gateway: {listen: ["127.0.0.1:8000"]}   # here
supervisor:
    engine:  /opt/old/llama-server   # the one with CUDA
    token: ${env:NOT_SET_HERE}
    # behind it

# tail
profiles: {}
"""


def change(text: str, value: str = "/opt/new/llama-server") -> str:
    return with_setting(text, "hostler.yaml", "supervisor", "engine", value)


def test_a_value_is_replaced_and_no_other_byte() -> None:
    assert change(MAIN) == MAIN.replace("/opt/old/", "/opt/new/")


def test_a_key_is_added_to_its_section_and_no_other_byte() -> None:
    before = MAIN.replace("    engine:  /opt/old/llama-server   # the one with CUDA\n", "")
    after = before.replace("HERE}\n", "HERE}\n    engine: /opt/new/llama-server\n")
    assert change(before) == after


def test_a_section_is_added_at_the_end() -> None:
    assert change("# mine\ngateway: {}") == "# mine\ngateway: {}\nsupervisor:\n  engine: /opt/new/llama-server\n"
    assert change("gateway: {}\r\n") == "gateway: {}\r\nsupervisor:\r\n  engine: /opt/new/llama-server\r\n"
    assert change("") == "supervisor:\n  engine: /opt/new/llama-server\n"


@pytest.mark.parametrize(
    "before",
    [
        "# only a comment\n",
        "supervisor:   # nothing yet\n",
        "supervisor: {}   # nothing yet\n",
        "supervisor: {engine: embedded, drain_s: 1}   # one line\n",
        "supervisor: {drain_s: 1}   # one line\n",
        "{gateway: {}}   # one line\n",
        "supervisor:\n  engine: >-\n    /opt/old\n    -fa on\n  drain_s: 1   # one\n",
        "supervisor:\n  engine: 'embedded'   # quoted\n",
        "supervisor:\n  engine:\n  drain_s: 1   # one\n",
        "supervisor:\n  devices:\n    gpu0: {budget: 1}   # one\n",
        "supervisor:\r\n  engine: embedded   # one\r\n",
    ],
)
def test_every_kind_of_file_can_be_changed(before: str) -> None:
    value = '/opt/with space/$new/llama-server -fa on: "x" # y'
    after = parse(change(before, value), "hostler.yaml", env={}).value
    expected = parse(before, "hostler.yaml", env={}).value or {}
    assert after == {**expected, "supervisor": {**(expected.get("supervisor") or {}), "engine": value}}
    for line in before.splitlines():
        assert "#" not in line or line[line.index("#") :] in change(before, value)


@pytest.mark.parametrize(
    ("before", "message"), [("- a\n", "expected a mapping"), ("supervisor: 1\n", "supervisor: expected a mapping")]
)
def test_a_file_of_another_kind_is_left_alone(before: str, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        change(before)
