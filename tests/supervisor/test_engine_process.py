"""One process over its generations, with scripted engines that misbehave in every known way."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from fakes.flag_file import FlagFile

from hostler.profiles.schema import Profile
from hostler.supervisor import engine_process
from hostler.supervisor.child import Child
from hostler.supervisor.config import SupervisorSettings
from hostler.supervisor.contract import EngineAddress, Failure, SupervisorError
from hostler.supervisor.engine_client import get_status
from hostler.supervisor.engine_command import EngineCommand, build_command
from hostler.supervisor.engine_lifecycle import CommandFactory
from hostler.supervisor.engine_process import ManagedProcess
from hostler.supervisor.logs import EngineLog
from hostler.supervisor.process_limits import ProcessLimits

pytestmark = pytest.mark.anyio

Make = Callable[..., AbstractAsyncContextManager["ObservedProcess"]]
Flags = Callable[[str], FlagFile]


class FakeLifecycle:
    """What surrounds an engine, without files, slots and memory."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.saved: list[EngineAddress] = []

    async def prepare(self) -> CommandFactory:
        return lambda port, key: build_command(
            self.profile, SupervisorSettings(), file=Path(self.profile.model), host="127.0.0.1", port=port, key=key,
            inherited=dict(os.environ),
        )  # fmt: skip

    async def clean_up(self, log: Callable[[str], None]) -> None:
        pass

    async def wait_for_memory(self) -> None:
        pass

    async def restore_slots(self, address: EngineAddress) -> None:
        pass

    async def save_slots(self, address: EngineAddress) -> None:
        self.saved.append(address)


class HeldLifecycle(FakeLifecycle):
    """An engine that is said to hold before it loads its model."""

    async def prepare(self) -> CommandFactory:
        command = await super().prepare()
        return lambda port, key: msgspec.structs.replace(command(port, key), holds=True)


@pytest.fixture
def process(scripted: Callable[..., Profile]) -> Make:
    """`async with process(ready_after=0.1) as one:` runs a process with an engine that behaves like that."""

    @asynccontextmanager
    async def make(
        *,
        limits: ProcessLimits | None = None,
        ports: range | None = None,
        lifecycle: type[FakeLifecycle] = FakeLifecycle,
        **script: Any,
    ) -> AsyncIterator[ObservedProcess]:
        one = ObservedProcess(lifecycle(scripted("m", **script)), limits or QUICK, ports)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.run)
            yield one
            tasks.cancel_scope.cancel()

    return make


QUICK = ProcessLimits(start_timeout_s=20, stop_grace_s=5, backoff_s=0.05, max_backoff_s=0.4, stable_s=60, watchdog_s=60)

#: Tries as often as it is asked to.
RELENTLESS = msgspec.structs.replace(QUICK, max_failures=1000, backoff_s=0.0)


async def failure_of(one: ObservedProcess) -> Failure:
    with pytest.raises(SupervisorError) as refused:
        await one.ensure_ready()
    return refused.value.failure


class ObservedProcess(ManagedProcess):
    """A process that records its states, so that a test can wait for states that are over already."""

    def __init__(self, lifecycle: Any, limits: ProcessLimits, ports: range | None) -> None:
        self.moved = anyio.Event()
        self.states: list[str] = []
        super().__init__("m", lifecycle, limits, EngineLog(), ports=ports, on_change=lambda _: self.record())

    def record(self) -> None:
        if self.states[-1:] != [self.state]:
            self.states.append(self.state)
        self.moved.set()


async def entered(one: ObservedProcess, *states: str) -> None:
    """Wait until it has entered one of these states, and forget the states before."""
    with anyio.fail_after(20):
        while True:
            while one.states:
                if one.states.pop(0) in states:
                    return
            one.moved = anyio.Event()
            await one.moved.wait()


@pytest.mark.parametrize("ready_after", [0.0, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("router_child", [False, True])
async def test_waiters_get_the_address_after_the_first_poll_that_finds_the_engine_ready(
    process: Make, journal: Any, ready_after: float, router_child: bool
) -> None:
    async with process(ready_after=ready_after, router_child=router_child) as one:
        address = await one.ensure_ready()
        assert await get_status(address.host, address.port, "/v1/models", timeout_s=20, key=address.key) == 200
        # The second poll asks whether restoring slots has crashed it.
        assert journal.events("request")[-1]["polls"] == 2


async def test_one_process_serves_all_waiters(process: Make, journal: Any, flags: Flags) -> None:
    ready = flags("ready")
    async with process(ready_when=ready.path) as one:
        addresses: list[EngineAddress] = []

        async def wait() -> None:
            addresses.append(await one.ensure_ready())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            # Some come before there is a process, some while it loads.
            tasks.start_soon(wait)
            await journal.until("start")
            for _ in range(4):
                tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            ready.set()
        assert len(addresses) == 6
        assert len({address.generation for address in addresses}) == 1
        assert len(journal.events("start")) == 1


async def test_a_cancelled_waiter_leaves_the_start_running(process: Make, journal: Any, flags: Flags) -> None:
    ready = flags("ready")
    async with process(ready_when=ready.path) as one:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.ensure_ready)
            await entered(one, "starting")
            tasks.cancel_scope.cancel()
        ready.set()
        await entered(one, "ready")
        assert (await one.ensure_ready()).generation == 1


@pytest.mark.parametrize("router_child", [False, True])
async def test_stops_and_starts_again_as_another_generation(process: Make, journal: Any, router_child: bool) -> None:
    async with process(router_child=router_child) as one:
        first = await one.ensure_ready()
        await one.stop()
        assert one.state == "stopped"
        assert one.address is None
        assert [event["code"] for event in journal.events("stop")] == [0]
        second = await one.ensure_ready()
        assert second.generation == first.generation + 1
        assert second.key != first.key


async def test_stopping_what_does_not_run_returns_at_once(process: Make) -> None:
    async with process() as one:
        await one.stop()
        assert one.state == "stopped"


async def test_an_exit_while_loading_fails_at_once_with_its_reason(process: Make, journal: Any) -> None:
    line = "0.00.001.000 E llama_model_load: error loading model: unknown model architecture: 'odd'"
    # Else it would fail after the time for a start, which is longer than this test may take.
    limits = msgspec.structs.replace(RELENTLESS, start_timeout_s=600)
    async with process(exit_code=1, exit_after=0.2, never_ready=True, stderr=line, limits=limits) as one:
        failure = await failure_of(one)
        assert failure.kind == "unknown_architecture"
        assert failure.exit_code == 1
        assert line in failure.lines


async def test_a_new_request_after_a_failed_load_tries_again(process: Make, journal: Any) -> None:
    async with process(exit_code=1, exit_times=1) as one:
        assert (await failure_of(one)).kind == "exited"
        assert (await one.ensure_ready()).generation == 2
        assert one.failure is None


async def test_fails_fast_after_too_many_failures(process: Make, journal: Any) -> None:
    limits = msgspec.structs.replace(QUICK, backoff_s=60, max_backoff_s=100)
    async with process(exit_code=3, stderr="it is broken", limits=limits) as one:
        for _ in range(3):
            await failure_of(one)
        await entered(one, "failed")
        for _ in range(9):
            failure = await failure_of(one)
        assert failure.lines == ("it is broken",)
        assert 0 < (failure.retry_after_s or 0) <= 100
        assert len(journal.events("start")) == 3
        assert one.state == "failed"


async def test_one_that_failed_too_often_is_tried_again_when_its_pause_is_over(process: Make, journal: Any) -> None:
    async with process(exit_code=3) as one:
        while len(journal.events("start")) < 3:
            await failure_of(one)
        await entered(one, "failed")
        await entered(one, "stopped")
        assert (await failure_of(one)).kind == "exited"
        assert len(journal.events("start")) == 4
        # One more failure is enough now: it has not been stable since.
        await entered(one, "failed")


async def test_reset_failures_no_longer_count(process: Make, journal: Any) -> None:
    async with process(exit_code=3, exit_times=3, limits=ProcessLimits(max_backoff_s=60, backoff_s=60)) as one:
        for _ in range(3):
            await failure_of(one)
        await entered(one, "failed")
        one.reset_failures()
        assert (await one.ensure_ready()).generation == 4


async def test_failures_are_forgotten_after_it_stayed_ready(process: Make, journal: Any) -> None:
    async with process(limits=ProcessLimits(stable_s=0, max_failures=2, backoff_s=0.01)) as one:
        for generation in (1, 2, 3):
            assert (await one.ensure_ready()).generation == generation
            assert one.pid is not None
            os.kill(one.pid, 9)
            await entered(one, "stopped", "backoff")
            assert one.state == "stopped"


async def test_a_crash_without_waiters_does_not_fail_the_next_request(process: Make, journal: Any) -> None:
    async with process() as one:
        await one.ensure_ready()
        assert one.pid is not None
        os.kill(one.pid, 9)
        await entered(one, "stopped")
        assert (await one.ensure_ready()).generation == 2


async def test_a_pinned_process_restarts_by_itself(process: Make, journal: Any) -> None:
    async with process(limits=ProcessLimits(keep=True, backoff_s=0.01)) as one:
        await one.ensure_ready()
        assert one.pid is not None
        os.kill(one.pid, 9)
        await entered(one, "backoff")
        await entered(one, "ready")
        assert one.generation == 2


async def test_an_engine_that_ignores_signals_is_killed_after_its_grace_period(process: Make, journal: Any) -> None:
    async with process(ignore_stop=True, limits=ProcessLimits(stop_grace_s=0.3)) as one:
        await one.ensure_ready()
        began = time.monotonic()
        await one.stop()
        assert time.monotonic() - began >= 0.3


async def test_a_grandchild_that_ignores_signals_does_not_outlive_its_engine(process: Make, journal: Any) -> None:
    async with process(grandchild=True) as one:
        await one.ensure_ready()
        assert len(journal.pids()) == 2
        await one.stop()
        assert_all_gone(journal.pids())


async def test_a_grandchild_that_ignores_signals_does_not_outlive_a_crash(process: Make, journal: Any) -> None:
    async with process(grandchild=True, exit_code=1, exit_after=0.1, never_ready=True) as one:
        # The grandchild holds the pipes open: waiting for their end would take for ever.
        with anyio.fail_after(20):
            assert (await failure_of(one)).kind == "exited"
        await entered(one, "backoff", "stopped")
        assert_all_gone(journal.pids())


def assert_all_gone(pids: list[int]) -> None:
    for pid in pids:
        status = Path(f"/proc/{pid}/stat")
        try:
            # Where no init process reaps orphans they stay zombies.
            assert status.read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


@pytest.mark.parametrize("script", [{"hang": True}, {"never_ready": True}, {"listen_after": 30}])
async def test_one_that_never_gets_ready_is_killed_at_its_limit(
    process: Make, journal: Any, script: dict[str, Any]
) -> None:
    limits = msgspec.structs.replace(RELENTLESS, start_timeout_s=0.7)
    async with process(limits=limits, **script) as one:
        began = time.monotonic()
        failure = await failure_of(one)
        assert time.monotonic() - began >= 0.7
        assert failure.kind == "start_timeout"
        await entered(one, "backoff")


async def test_can_be_stopped_while_it_starts(process: Make, journal: Any) -> None:
    async with process(never_ready=True) as one:
        order = one.request_start()
        await entered(one, "starting")
        await one.stop()
        with pytest.raises(SupervisorError) as refused:
            await order.wait()
        assert refused.value.failure.kind == "cancelled"
        assert one.state == "stopped"


async def test_the_result_of_an_old_start_never_reaches_a_new_waiter(process: Make, journal: Any, flags: Flags) -> None:
    ready, gone = flags("ready"), flags("gone")
    limits = msgspec.structs.replace(QUICK, stop_grace_s=60)
    async with process(ready_when=ready.path, gone_when=gone.path, limits=limits) as one:
        old = one.request_start()
        await journal.until("start")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.stop)
            await journal.until("stop_requested")
            new = one.request_start()
            # Now the old one gets ready while it is being stopped.
            ready.set()
            await journal.until("ready")
            with pytest.raises(SupervisorError):
                await old.wait()
            assert not new.settled
            gone.set()
            assert (await new.wait()).generation == 2


async def test_a_response_of_another_process_on_the_port_does_not_count(process: Make, journal: Any) -> None:
    async with anyio.create_task_group() as tasks:
        taken: list[int] = []
        answered = anyio.Event()

        async def answer(stream: anyio.abc.SocketStream) -> None:
            # Some connections only check whether the port is open.
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                async with stream:
                    await stream.receive()
                    await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    answered.set()

        class TooLate(FakeLifecycle):
            """Another server takes the port before the engine binds it, and responds that all is well."""

            async def prepare(self) -> CommandFactory:
                original = await super().prepare()

                def command_for(port: int, key: str) -> EngineCommand:
                    if not taken:
                        taken.append(port)
                        impostor = socket.socket()
                        impostor.bind(("127.0.0.1", port))
                        impostor.listen()
                        tasks.start_soon(serve, impostor)
                    return original(port, key)

                return command_for

        async def serve(impostor: socket.socket) -> None:
            listener = await anyio.abc.SocketListener.from_socket(impostor)
            async with listener:
                await listener.serve(answer)

        async with process(lifecycle=TooLate, listen_after=0.3) as one:
            address = await one.ensure_ready()
            # The first engine could not bind its port; the second one uses another.
            assert answered.is_set()
            assert address.port != taken[0]
            assert len(journal.events("start")) == 2
        tasks.cancel_scope.cancel()


async def test_a_taken_port_of_the_range_is_passed_over(process: Make, journal: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        first: int = taken.getsockname()[1]
        async with process(ports=range(first, first + 5)) as one:
            assert first < (await one.ensure_ready()).port < first + 5


async def test_a_range_without_a_free_port_is_refused_by_name(process: Make) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port: int = taken.getsockname()[1]
        async with process(ports=range(port, port + 1)) as one:
            failure = await failure_of(one)
            assert failure.kind == "port_taken"
            assert f"engine_ports {port}-{port}" in failure.message


async def test_an_unresponsive_engine_is_killed(process: Make, journal: Any, flags: Flags) -> None:
    hang = flags("hang")
    limits = msgspec.structs.replace(QUICK, watchdog_s=0.4, backoff_s=0.01)
    async with process(hang_when=hang.path, limits=limits) as one:
        await one.ensure_ready()
        hang.set()
        await entered(one, "stopped", "backoff")
        assert one.failure is not None
        assert one.failure.kind == "unresponsive"


async def test_a_busy_engine_is_left_alone(process: Make, journal: Any) -> None:
    async with process(limits=ProcessLimits(watchdog_s=2.5), chunks=8, chunk_delay=0.4) as one:
        address = await one.ensure_ready()
        # One response takes longer than the watchdog's limit.
        asked = msgspec.json.encode({"messages": []})
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {address.key}\r\n"
            f"Content-Length: {len(asked)}\r\nConnection: close\r\n\r\n"
        )
        async with await anyio.connect_tcp(address.host, address.port) as engine:
            await engine.send(head.encode() + asked)
            answer = b""
            while b"word7" not in answer:
                answer += await engine.receive()
        assert one.state == "ready"


async def test_saves_slots_before_the_engine_stops(process: Make, journal: Any) -> None:
    answered: list[int | None] = []

    class Saving(FakeLifecycle):
        async def save_slots(self, address: EngineAddress) -> None:
            answered.append(await get_status(address.host, address.port, "/slots", timeout_s=2, key=address.key))

    async with process(lifecycle=Saving) as one:
        await one.ensure_ready()
        await one.stop()
    assert answered == [200]


async def test_an_engine_that_crashes_while_restoring_slots_is_started_once_more(process: Make, journal: Any) -> None:
    died: list[int] = []

    class Deadly(FakeLifecycle):
        async def restore_slots(self, address: EngineAddress) -> None:
            if not died:
                [pid] = journal.pids()
                died.append(pid)
                os.kill(pid, 6)
                await get_status(address.host, address.port, "/slots", timeout_s=2, key=address.key)

    async with process(lifecycle=Deadly) as one:
        await one.ensure_ready()
        assert len(journal.events("start")) == 2


async def test_cancelling_the_task_leaves_no_process_in_any_phase(process: Make, journal: Any) -> None:
    for pause in (0.0, 0.02, 0.05, 0.1, 0.3):
        async with process(ready_after=0.1, grandchild=True) as one:
            one.request_start()
            await anyio.sleep(pause)
    assert_all_gone(journal.pids())


async def test_keys_show_up_in_no_line(process: Make, journal: Any) -> None:
    async with process() as one:
        address = await one.ensure_ready()
        one.log.add(f"Authorization: Bearer {address.key}")
        assert address.key not in "\n".join(one.log.tail())


async def test_an_engine_that_cannot_be_executed_is_missing(process: Make, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELFnonsense")
    broken.chmod(0o755)

    class Broken(FakeLifecycle):
        async def prepare(self) -> CommandFactory:
            import msgspec

            original = await super().prepare()
            return lambda port, key: msgspec.structs.replace(original(port, key), arguments=(str(broken),))

    async with process(lifecycle=Broken) as one:
        assert (await failure_of(one)).kind == "engine_missing"


async def test_memory_that_is_not_free_yet_is_waited_for_before_another_try(process: Make, journal: Any) -> None:
    made: list[FakeLifecycle] = []

    class Waiting(FakeLifecycle):
        async def wait_for_memory(self) -> None:
            made.append(self)
            assert len(journal.events("start")) == 1

    async with process(lifecycle=Waiting, stderr="ggml: out of memory", exit_code=1, exit_times=1) as one:
        await one.ensure_ready()
    assert len(made) == 1
    assert len(journal.events("start")) == 2


async def test_memory_that_is_not_there_is_a_failure_after_two_tries(process: Make, journal: Any) -> None:
    async with process(stderr="ggml: out of memory", exit_code=1) as one:
        with pytest.raises(SupervisorError) as failed:
            await one.ensure_ready()
    assert failed.value.failure.kind == "out_of_memory"
    assert len(journal.events("start")) == 2


async def test_an_engine_that_cannot_be_told_to_load_fails_at_once(
    process: Make, journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Child, "write_line", lambda child, line: False)
    async with process(lifecycle=HeldLifecycle) as one:
        held = one.request_start(held=True)
        await journal.until("start")
        assert not held.settled
        failure = await failure_of(one)
    assert (failure.kind, "does not read the command to load it" in failure.message) == ("unresponsive", True)
    assert len(journal.events("start")) == 1


async def test_an_engine_that_ends_while_it_holds_fails_with_its_reason(process: Make, journal: Any) -> None:
    async with process(lifecycle=HeldLifecycle, exit_code=3) as one:
        with pytest.raises(SupervisorError, match="exit code 3"):
            await one.request_start(held=True).wait()


async def test_an_engine_does_not_hold_for_ever(process: Make, journal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "HOLDING_S", 0.2)
    async with process(lifecycle=HeldLifecycle) as one:
        with pytest.raises(SupervisorError, match=r"could not load for 0\.2 s: those that stop for it are still there"):
            await one.request_start(held=True).wait()


async def test_one_that_prepares_after_it_may_load_never_holds(process: Make, journal: Any) -> None:
    reached, prepared = anyio.Event(), anyio.Event()

    class Slow(HeldLifecycle):
        async def prepare(self) -> CommandFactory:
            reached.set()
            await prepared.wait()
            return await super().prepare()

    async with process(lifecycle=Slow) as one:
        started = one.request_start(held=True)
        await reached.wait()
        assert (one.phase, one.held) == ("preparing", True)
        one.request_start()
        assert (one.phase, one.held) == ("preparing", False)
        prepared.set()
        await started.wait()
        assert (one.phase, one.held) == ("ready", False)
