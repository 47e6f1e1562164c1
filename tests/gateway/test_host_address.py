"""The URL under which a supervisor reports itself."""

from __future__ import annotations

import asyncio
import threading

import pytest

from hostler.gateway.cluster_settings import ClusterSettings
from hostler.gateway.host_address import announced_url, gateway_url, joins_cluster, unreachable_reason
from hostler.gateway.server.event_loop import Loop
from hostler.gateway.settings import Settings
from hostler.supervisor.config import SupervisorSettings, TLSSettings

pytestmark = pytest.mark.anyio

CLUSTER = ClusterSettings(store="redis://127.0.0.1:6379", token="t")
TLS = TLSSettings(cert="c", key="k")


@pytest.mark.parametrize(
    ("listen", "tls", "url"),
    [
        ("192.168.1.9:8080", None, "http://192.168.1.9:8080"),
        ("pc.lan:8080", TLS, "https://pc.lan:8080"),
        ("[fd00::9]:8080", None, "http://[fd00::9]:8080"),
        ("0.0.0.0:8080", None, "http://127.0.0.1:8080"),  # from where the store is reached
        ("unix:/run/hostler.sock", None, None),
        ("127.0.0.1:0", None, None),
    ],
)
async def test_it_is_the_address_where_the_supervisor_listens(
    listen: str, tls: TLSSettings | None, url: str | None
) -> None:
    supervisor = SupervisorSettings(listen=listen, tls=tls)
    assert await announced_url(CLUSTER, supervisor) == url
    assert (unreachable_reason(CLUSTER, supervisor) is None) is (url is not None)


@pytest.mark.parametrize("listen", ["127.0.0.1:8080", "localhost:8080", "[::1]:8080"])
async def test_other_machines_are_not_sent_to_their_own_loopback(listen: str) -> None:
    supervisor = SupervisorSettings(listen=listen)
    assert await announced_url(CLUSTER, supervisor) is not None
    assert await announced_url(ClusterSettings(store="unix:///run/valkey.sock", token="t"), supervisor) is not None
    far = ClusterSettings(store="redis://store.lan", token="t")
    assert await announced_url(far, supervisor) is None
    assert "the store is on another one" in (unreachable_reason(far, supervisor) or "")


@pytest.mark.parametrize(
    ("listen", "store", "tls", "url"),
    [
        (["127.0.0.1:8000", "192.168.1.9:8000"], "redis://store.lan", False, "http://192.168.1.9:8000"),
        (["unix:/run/hostler.sock", "pc.lan:8443"], "redis://store.lan", True, "https://pc.lan:8443"),
        (["127.0.0.1:8000"], "redis://127.0.0.1", False, "http://127.0.0.1:8000"),
        (["0.0.0.0:8000"], "redis://127.0.0.1", False, "http://127.0.0.1:8000"),
        (["127.0.0.1:8000"], "redis://store.lan", False, None),
        (["127.0.0.1:0", "unix:/run/hostler.sock"], "redis://127.0.0.1", False, None),
    ],
)
async def test_a_gateway_is_at_the_first_address_that_others_reach(
    listen: list[str], store: str, tls: bool, url: str | None
) -> None:
    assert await gateway_url(ClusterSettings(store=store), listen, tls=tls) == url
    named = ClusterSettings(store=store, gateway_url="http://gateway.lan")
    assert await gateway_url(named, listen, tls=tls) == "http://gateway.lan"


async def test_the_configured_url_counts() -> None:
    cluster = ClusterSettings(store="redis://127.0.0.1", token="t", url="https://gpu.example:8443")
    supervisor = SupervisorSettings(listen="unix:/run/hostler.sock")
    assert unreachable_reason(cluster, supervisor) is None
    assert await announced_url(cluster, supervisor) == "https://gpu.example:8443"


@pytest.mark.parametrize("store", ["unknown.invalid", "store..lan", "a" * 64])
async def test_without_an_address_nothing_is_reported(store: str) -> None:
    unknown = ClusterSettings(store=f"redis://{store}", token="t")
    assert await announced_url(unknown, SupervisorSettings(listen="0.0.0.0:8080")) is None


def test_a_name_server_that_does_not_answer_keeps_nothing_from_ending() -> None:
    before, asked, answered = set(threading.enumerate()), threading.Event(), threading.Event()

    class NoAnswer(Loop):
        @staticmethod
        def look_up(*_: object) -> list[tuple[object, ...]]:
            asked.set()
            answered.wait(60)
            return []

    async def ask() -> None:
        far = ClusterSettings(store="redis://store.example", token="t")
        question = asyncio.create_task(announced_url(far, SupervisorSettings(listen="0.0.0.0:8080")))
        assert await asyncio.to_thread(asked.wait, 20)
        question.cancel()
        with pytest.raises(asyncio.CancelledError):
            await question

    try:
        with asyncio.Runner(loop_factory=NoAnswer) as runner:
            runner.run(ask())
        assert not [each for each in set(threading.enumerate()) - before if not each.daemon]
    finally:
        answered.set()


@pytest.mark.parametrize(
    ("cluster", "joins"),
    [(None, False), (ClusterSettings(store="redis://a"), False), (CLUSTER, True),
     (ClusterSettings(store="redis://a", token_file="f"), True)],
)  # fmt: skip
def test_only_a_supervisor_with_the_clusters_token_joins(cluster: ClusterSettings | None, joins: bool) -> None:
    assert joins_cluster(Settings(cluster=cluster)) is joins
