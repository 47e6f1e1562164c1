"""A gateway and a supervisor with TLS between them."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.certificates import make_pair
from system.running_gateway import StartGateway, remote_supervisor

from hostler.supervisor.client import SupervisorClient
from hostler.supervisor.contract import SupervisorUnreachable
from hostler.supervisor.lease_connection import open_connection
from hostler.supervisor.tls import pinned_context

pytestmark = pytest.mark.anyio


async def test_a_gateway_uses_a_supervisor_whose_certificate_it_has(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    pair = make_pair(tmp_path, "pc")
    async with (
        remote_supervisor(tmp_path / "pc", {"a": {}}, pair=pair) as pc,
        start_gateway({}, backends={"pc": pc.backend}) as gateway,
    ):
        assert (await gateway.chat("a")).status_code == 200
        assert (await gateway.action("unload", model="a")).status_code == 200
        assert pc.starts() == ["a"]


async def test_another_certificate_is_refused_with_the_reason(tmp_path: Path) -> None:
    pair, other = make_pair(tmp_path, "pc"), make_pair(tmp_path, "other")
    async with remote_supervisor(tmp_path / "pc", {"a": {}}, pair=pair) as pc:
        url, token, frames = pc.backend["url"], pc.backend["token"], []
        connection = await open_connection(url, token, frames.append, timeout_s=20, tls=pinned_context(pair.cert))
        connection.finish()
        await connection.closed.wait()
        for tls in (pinned_context(other.cert), None):
            with pytest.raises(SupervisorUnreachable, match="set the backend's certificate"):
                await open_connection(url, token, frames.append, timeout_s=20, tls=tls)
            async with SupervisorClient(url, token, tls=tls) as client:
                with pytest.raises(SupervisorUnreachable, match=r"127\.0\.0\.1"):
                    await client.status()
