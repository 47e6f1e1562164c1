"""The presets: complete, documented, and the same in a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler.profiles.engine_presets import PRESETS
from hostler.profiles.engines import InvalidEngine, resolve_engines

_ERRORS: list[InvalidEngine] = []
TABLE = resolve_engines({}, PRESETS, {}, errors=_ERRORS)
PAGE = Path(__file__).parents[2] / "docs" / "engines.md"


def test_every_preset_is_valid() -> None:
    assert not _ERRORS
    assert TABLE.engines.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.endswith(("-docker", "-podman"))])
def test_every_program_is_documented(name: str) -> None:
    assert f"| `{name}` |" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("-podman")])
def test_a_container_is_stopped_and_removed_by_its_name(name: str) -> None:
    engine = TABLE.engines[name]
    assert engine.command[:2] == ("podman", "run")
    assert engine.stop_command == ("podman", "stop", "${container}")
    assert engine.cleanup == ("podman", "rm", "--force", "${container}")
    assert engine.listens == "anywhere"
    assert "${host}" not in engine.command


def test_a_key_is_never_an_option_of_a_container() -> None:
    options = [word for word in TABLE.engines["vllm-docker"].command if "key" in word]
    assert not options
