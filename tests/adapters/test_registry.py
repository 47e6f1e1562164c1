"""Adapters are found through entry points; broken ones are logged and skipped, conflicts are errors."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint

import pytest

from hostler.adapters.base import Operation
from hostler.adapters.openai.adapter import OpenAIAdapter
from hostler.adapters.registry import AdapterConflict, check_conflicts, load_adapters

OPENAI = EntryPoint("openai", "hostler.adapters.openai.adapter:OpenAIAdapter", "hostler.adapters")


class Other(OpenAIAdapter):
    """Claims one of OpenAI's paths, perhaps with a header."""

    header: str | None = None

    name = "other"

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (Operation(name="mine", path="/v1/models", methods=("GET",), header=self.header),)


def test_built_in_adapters_are_found() -> None:
    assert "openai" in [adapter.name for adapter in load_adapters()]


@pytest.mark.parametrize("value", ["nowhere_at_all:Thing", "json:Nothing", "json:JSONEncoder", "math:sqrt"])
def test_a_broken_adapter_is_logged_and_skipped(caplog: pytest.LogCaptureFixture, value: str) -> None:
    with caplog.at_level(logging.ERROR):
        adapters = load_adapters([EntryPoint("broken", value, "hostler.adapters"), OPENAI])
    assert [adapter.name for adapter in adapters] == ["openai"]
    assert f"broken ({value}) skipped" in caplog.text


def test_a_duplicate_name_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    again = EntryPoint("zzz", OPENAI.value, OPENAI.group)
    assert len(load_adapters([again, OPENAI])) == 1
    assert "another adapter has this name" in caplog.text


def test_two_adapters_with_the_same_path_conflict() -> None:
    with pytest.raises(AdapterConflict, match="openai and other both claim GET /v1/models"):
        check_conflicts([OpenAIAdapter(), Other()])


def test_a_header_distinguishes_two_adapters() -> None:
    other = Other()
    other.header = "anthropic-version"
    check_conflicts([OpenAIAdapter(), other])
