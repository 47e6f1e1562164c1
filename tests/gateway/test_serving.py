"""What serves requests for models is built from the settings alone, and runs without the rest of a gateway."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from fakes.serving_parts import BACKENDS, serving

from hostler.adapters.errors import ShuttingDown
from hostler.gateway.config import ConfigError


def test_each_supervisor_is_a_host_and_each_backend_a_hop(tmp_path: Path) -> None:
    parts = serving(tmp_path)
    assert (list(parts.hosts), sorted(parts.chain.hops), sorted(parts.backends)) == (
        ["pc"],
        ["cloud", "pc"],
        ["cloud", "pc"],
    )


def test_a_certificate_that_cannot_be_read_is_a_mistake_of_the_settings(tmp_path: Path) -> None:
    pinned = BACKENDS.replace(
        'http://127.0.0.1:9", token', f'https://127.0.0.1:9", certificate: {tmp_path}/none, token'
    )
    with pytest.raises(ConfigError, match=r"backends\.pc\.certificate"):
        serving(tmp_path, pinned)


@pytest.mark.anyio
async def test_waiting_requests_are_refused_when_it_shuts_down(tmp_path: Path) -> None:
    parts = serving(tmp_path)
    async with anyio.create_task_group() as tasks:
        parts.start(tasks)
        parts.shut_down()
        with pytest.raises(ShuttingDown):
            parts.hosts["pc"].lease("big").address()
        tasks.cancel_scope.cancel()
    await parts.aclose()
