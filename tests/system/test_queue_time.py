"""The time of requests that waited in vain: in the event, the log line, the metrics and the headers."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import anyio
import pytest
from fakes.flag_file import FlagFile
from system.running_gateway import RunningGateway, StartGateway, first_token

from hostler.gateway.events import Event, RequestFinished
from hostler.gateway.telemetry.access_log import describe

pytestmark = pytest.mark.anyio

LONG = {"chunks": 50_000, "chunk_delay": 0.02}

Flags = Callable[[str], FlagFile]
End = Callable[[RunningGateway, anyio.CancelScope], Awaitable[object]]


async def leaves(gateway: RunningGateway, client: anyio.CancelScope) -> None:
    client.cancel()


async def is_cancelled(gateway: RunningGateway, client: anyio.CancelScope) -> None:
    (waiting,) = (await gateway.status())["hosts"][0]["queue"]
    await gateway.action("cancel", id=waiting["id"])


async def has_its_model_unloaded(gateway: RunningGateway, client: anyio.CancelScope) -> None:
    await gateway.action("unload", model="a")


async def sees_the_gateway_stop(gateway: RunningGateway, client: anyio.CancelScope) -> None:
    gateway.app.stop()


async def until_queued_for(gateway: RunningGateway, seconds: float) -> float:
    """Wait until a request has been queued so long, and how long it has been then."""
    waited_s = -1.0
    with anyio.fail_after(20):
        while waited_s < seconds:
            waited_s = max([each["waited_s"] for each in (await gateway.status())["hosts"][0]["queue"]], default=-1.0)
    return waited_s


async def waited(gateway: RunningGateway, end: End, *, loads: bool = False) -> tuple[RequestFinished, float]:
    """A request for `a` that is seen in the queue and then ends so, and how long it had been queued by then.

    The status rounds to a millisecond, perhaps upwards: half of one is taken off.
    """
    finished: list[RequestFinished] = []
    over = anyio.Event()

    def note(event: Event) -> None:
        if isinstance(event, RequestFinished) and event.model == "a" and event.requested_model == "a:latest":
            finished.append(event)
            over.set()

    gateway.app.bus.listen(note)
    client = anyio.CancelScope()

    async def ask() -> None:
        with client:
            await gateway.chat("a:latest")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await until_queued_for(gateway, 0.05)
        if loads:
            # More of it after the switch has begun than before.
            await gateway.until(lambda: gateway.starts("a"))
            await until_queued_for(gateway, 2.1 * await until_queued_for(gateway, 0.0))
        waited_s = await until_queued_for(gateway, 0.0)
        await end(gateway, client)
        with anyio.fail_after(20):
            await over.wait()
    return finished[0], waited_s - 0.0005


@pytest.mark.parametrize("end", [leaves, is_cancelled, has_its_model_unloaded, sees_the_gateway_stop])
async def test_a_request_that_ends_in_the_queue_has_queue_time(start_gateway: StartGateway, end: End) -> None:
    async with (
        start_gateway({"a": {"script": LONG}}, gateway={"drain_s": 0.1}) as gateway,
        gateway.stream("a") as running,
    ):
        await first_token(running)
        event, waited_s = await waited(gateway, end)
        assert waited_s <= event.queue_s <= event.seconds
        assert event.switch_s == 0
        assert f"queued {event.queue_s:.3f} s" in describe(event)
        if end is not sees_the_gateway_stop:
            metrics = (await gateway.http.get("/metrics")).text
            found = re.search(r'^hostler_queue_wait_seconds_sum\{model="a"\} (\S+)', metrics, re.MULTILINE)
            assert found
            assert float(found[1]) >= waited_s


async def test_a_client_that_disconnects_during_a_load_has_switch_time(
    start_gateway: StartGateway, flags: Flags
) -> None:
    ready = flags("ready")
    async with start_gateway({"a": {"script": {"ready_when": ready.path}}}) as gateway:
        event, waited_s = await waited(gateway, leaves, loads=True)
        assert event.outcome == "client_disconnected"
        assert waited_s <= event.queue_s + event.switch_s <= event.seconds
        assert event.switch_s > event.queue_s
        ready.set()


async def test_a_request_whose_load_fails_has_switch_time(start_gateway: StartGateway, flags: Flags) -> None:
    die = flags("die")

    async def lets_it_die(gateway: RunningGateway, client: anyio.CancelScope) -> None:
        die.set()

    script = {"never_ready": True, "exit_code": 1, "exit_when": die.path}
    async with start_gateway({"a": {"script": script}}) as gateway:
        event, waited_s = await waited(gateway, lets_it_die, loads=True)
        assert event.status == 503
        assert waited_s <= event.queue_s + event.switch_s <= event.seconds
        assert event.switch_s > event.queue_s


async def test_a_wait_timeout_reports_its_queue_time(start_gateway: StartGateway) -> None:
    async with start_gateway({"a": {"script": LONG}}, gateway={"queue": {"max_wait_s": 0.2}}) as gateway:
        # The load itself may take longer than the wait limit.
        with anyio.fail_after(20):
            while (await gateway.action("load", model="a")).status_code != 200:
                pass
        async with gateway.stream("a") as running:
            await first_token(running)
            answer = await gateway.chat("a")
            assert answer.status_code == 503
            # The limit counts from the request's arrival: some of it may have passed before it was queued.
            assert int(answer.headers["x-hostler-queue-ms"]) >= 100
