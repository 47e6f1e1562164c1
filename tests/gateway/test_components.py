"""The parts of a gateway: what settings make of them, and which settings cannot be."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from hostler.gateway.components import Components
from hostler.gateway.config import ConfigError, read

TWO_BACKENDS = """
gateway:
  listen: ["127.0.0.1:0"]
  chain: [pc, cloud]
backends:
  pc: {kind: supervisor, url: "http://127.0.0.1:9", token: secret-of-the-test}
  cloud: {kind: openai, url: "http://127.0.0.1:9/v1", models: {big: big}}
"""


def components(tmp_path: Path, text: str, **more: Any) -> Components:
    file = tmp_path / "hostler.yaml"
    file.write_text(text, encoding="utf-8")
    options = {"local": None, "history": None, "library": None, "presets": {}, "refresh": None, "clock": time.monotonic}
    return Components(read(file, {}).settings, **{**options, **more})


def test_each_supervisor_is_a_host_and_each_backend_a_hop(tmp_path: Path) -> None:
    parts = components(tmp_path, TWO_BACKENDS)
    assert list(parts.serving.hosts) == ["pc"]
    assert sorted(parts.serving.chain.hops) == ["cloud", "pc"]
    assert sorted(parts.serving.backends) == ["cloud", "pc"]


def test_models_of_configured_backends_are_listed_before_anything_runs(tmp_path: Path) -> None:
    assert [card.name for card in components(tmp_path, TWO_BACKENDS).model_list().cards] == ["big"]


def test_transcripts_and_traces_are_off_by_default(tmp_path: Path) -> None:
    parts = components(tmp_path, TWO_BACKENDS)
    assert (parts.transcripts, parts.serving.tracer) == (None, None)


def test_an_address_beyond_loopback_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without API keys"):
        components(tmp_path, TWO_BACKENDS.replace("127.0.0.1:0", "0.0.0.0:0"))


@pytest.mark.anyio
async def test_running_starts_without_unreachable_hosts_and_ends_with_its_body(tmp_path: Path) -> None:
    parts = components(tmp_path, TWO_BACKENDS)
    subscription = parts.serving.bus.subscribe()
    async with parts.running():
        assert not parts.serving.hosts["pc"].reachable
        assert not subscription.closed
    assert subscription.closed


@pytest.mark.anyio
async def test_a_part_that_cannot_be_closed_does_not_keep_the_others_open(tmp_path: Path) -> None:
    parts = components(tmp_path, TWO_BACKENDS)
    closed: list[str] = []

    class Closes:
        def __init__(self, name: str, error: Exception | None = None) -> None:
            self.name = name
            self.error = error

        async def aclose(self) -> None:
            closed.append(self.name)
            if self.error is not None:
                raise self.error

    parts.serving._lan = Closes("lan", OSError("no"))  # type: ignore[assignment]
    parts.serving._remote = Closes("remote", RuntimeError("no"))  # type: ignore[assignment]
    parts.serving.chain = Closes("chain")  # type: ignore[assignment]
    with pytest.raises(RuntimeError):
        await parts._aclose()
    assert closed == ["lan", "remote", "chain"]
