"""Vendors' tools that fail in all ways."""

from __future__ import annotations

import sys

import pytest

from hostler.supervisor.devices.command_output import command_output
from hostler.supervisor.devices.reading import DeviceError


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("print('half'); raise SystemExit(3)", "exited with 3: half"),
        ("import time; time.sleep(60)", "did not answer within"),
    ],
)
def test_a_failure_names_the_tool_and_what_it_said(program: str, words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        command_output([sys.executable, "-c", program], timeout_s=0.5 if "sleep" in program else 30)


def test_a_missing_tool_is_an_error() -> None:
    with pytest.raises(DeviceError, match="No such file"):
        command_output(["/nowhere/nvidia-smi"])


def test_returns_what_is_printed() -> None:
    assert command_output([sys.executable, "-c", "print('é'.encode('latin1'))"]).strip() == "b'\\xe9'"
