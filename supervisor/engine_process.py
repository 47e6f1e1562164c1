"""One model's engine process over all its generations: callers request starts and stops, one task carries them out."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable
from typing import Final

import anyio
import msgspec

from hostler.supervisor.child import FORCED_END, Child
from hostler.supervisor.contract import EngineAddress, Failure, FailureKind, SupervisorError
from hostler.supervisor.embedded.server import LOAD_COMMAND
from hostler.supervisor.engine_command import EngineCommand, hold
from hostler.supervisor.engine_lifecycle import CommandFactory, EngineLifecycle
from hostler.supervisor.engine_port import free_port
from hostler.supervisor.engine_sleep import SleepingEngine, fall_asleep
from hostler.supervisor.engine_stop import clean_up, stop_engine
from hostler.supervisor.generation import Generation, StartResult
from hostler.supervisor.logs import EngineLog
from hostler.supervisor.process_limits import ProcessLimits
from hostler.supervisor.process_state import ProcessState
from hostler.supervisor.readiness import Readiness, responds, wait_until_unresponsive
from hostler.supervisor.states import LINES_KEPT, after_failure, backoff_delay_s, explain_exit

#: What restoring and saving all slots may take at most. Each has its own limit, which depends on its size.
RESTORING_S: Final = 300.0
SAVING_S: Final = 300.0

#: How long an engine may hold before it loads its model: meanwhile others are saved and stopped.
HOLDING_S: Final = 900.0

logger = logging.getLogger(__name__)


class ManagedProcess(ProcessState):
    """Keeps at most one engine running for one model.

    `request_start` and `stop` may be called by any task; `run`, the only writer of the state, carries them out.
    Cancelling a caller changes nothing; cancelling `run` leaves no process behind.
    """

    def __init__(
        self, model: str, lifecycle: EngineLifecycle, limits: ProcessLimits, log: EngineLog, *, host: str = "127.0.0.1",
        ports: range | None = None, on_change: Callable[[ManagedProcess], None] = lambda _: None,
    ) -> None:  # fmt: skip
        super().__init__(model, lambda: on_change(self))
        self.log = log
        self.limits = limits
        self._lifecycle = lifecycle
        self._host = host
        self._ports = ports
        self._failures = 0
        self._backoff_until = 0.0
        self._next: StartResult | None = None
        self._wake = anyio.Event()
        self._failed_ports: set[int] = set()

    # Requests.

    async def ensure_ready(self) -> EngineAddress:
        """`request_start`, and wait for the result. Raises `SupervisorError`."""
        return await self.request_start().wait()

    def request_start(self, *, held: bool = False) -> StartResult:
        """Make it ready.

        `ready` settles at once, `starting` joins, `stopping` starts again afterwards, `failed` fails at once until its
        backoff is over; from all other states it starts now. With `held` it holds before it loads its model, until the next
        call without, if its engine can.
        """
        current = self._current
        if current is not None and not current.cancelled and (current.child is None or current.child.running):
            if not held:
                current.result.may_load.set()
            return current.result
        if self._failures >= self.limits.max_failures and self._failure is not None:
            left = self._backoff_until - time.monotonic()
            if left > 0:
                refused = StartResult(held=held)
                refused.settle(msgspec.structs.replace(self._failure, retry_after_s=left))
                return refused
        if self._next is None:
            self._next = StartResult(held=held)
            self._wake.set()
        elif not held:
            self._next.may_load.set()
        return self._next

    async def stop(self, *, sleep: bool = False) -> None:
        """Stop the current process and return when its whole group is gone. Callers waiting for it get `cancelled`.

        With `sleep` it sleeps instead if it can.
        """
        current, asleep = self._current, self._asleep
        self.request_stop(sleep=sleep)
        if current is not None:
            await current.ended.wait()
        if not sleep:
            asleep = asleep or self._asleep
            if asleep is not None:
                self.end_sleep()
                await asleep.ended.wait()

    def request_stop(self, *, sleep: bool = False) -> None:
        """Begin to stop the current process. Callers waiting for it get `cancelled`."""
        cancelled = Failure(kind="cancelled", message=f'model "{self.model}" was unloaded')
        if self._next is not None:
            self._next.settle(cancelled)
            self._next = None
        current = self._current
        if current is not None:
            current.result.settle(cancelled)
            current.sleeps = sleep and (current.sleeps or not current.cancelled)
            current.cancel()
        if not sleep:
            self.end_sleep()

    def kill(self) -> None:
        """End the current process at once, and later ones without a grace period."""
        self.limits = msgspec.structs.replace(self.limits, stop_grace_s=0)
        if self._current is not None and self._current.child is not None:
            self._current.child.signal(FORCED_END)
        if self._asleep is not None:
            self._asleep.kill()

    def end_sleep(self) -> None:
        """Begin to end the engine that sleeps, or falls asleep."""
        if self._current is not None:
            self._current.sleeps = False
        if self._asleep is not None:
            self._asleep.leaving = True
            self._wake.set()

    async def wait_ended(self) -> None:
        """Wait until the current process has ended, for whatever reason."""
        current = self._current
        if current is not None:
            await current.ended.wait()

    def reset_failures(self) -> None:
        """Forget earlier failures: the next request starts at once."""
        self._failures = 0
        self._backoff_until = 0.0
        self._wake.set()

    # The task.

    async def run(self) -> None:
        """Carry out requests until cancelled. Removes first what an earlier supervisor may have left behind."""
        await self._lifecycle.clean_up(self.log.add)
        try:
            await self._run()
        finally:
            if self._asleep is not None:
                with anyio.CancelScope(shield=True):
                    await self._end_sleeping(self._asleep)

    async def _run(self) -> None:
        while True:
            result = await self._wait_for_request()
            self._next = None
            self._generation += 1
            current = self._current = Generation(self._generation, result)
            try:
                await self._run_generation(current)
            finally:
                current.cancelled = current.cancelled or current.failure is None
                try:
                    if current.child is not None and self._asleep is None:
                        with anyio.CancelScope(shield=True):
                            if current.child.returncode is None:
                                await self._end(current)
                            await current.child.end(0)
                finally:
                    self._current = None
                    current.result.settle(Failure(kind="cancelled", message="the supervisor is stopping"))
                    current.ended.set()
            self._after_generation(current)

    async def _wait_for_request(self) -> StartResult:
        while True:
            if self._asleep is not None and (self._asleep.leaving or self._asleep.pid is None):
                await self._end_sleeping(self._asleep)
            if self._next is not None:
                if self._state == "failed":
                    self._enter("stopped")
                return self._next
            self._wake = anyio.Event()
            left = self._backoff_until - time.monotonic()
            waiting = self._state in ("backoff", "failed")
            if waiting and left <= 0:
                if self.limits.keep and self._state == "backoff":
                    self._next = StartResult()
                    continue
                self._enter("stopped")
                waiting = False
            with anyio.move_on_after(left if waiting else None):
                await self._wake.wait()

    async def _run_generation(self, current: Generation) -> None:
        """From the request to the end of the process. Leaves the reason of a failure in `current.failure`."""
        self._enter("starting", "preparing")
        try:
            with current.scope:
                await self._start(current)
                started = time.monotonic()
                try:
                    await self._serve(current)
                finally:
                    if time.monotonic() - started >= self.limits.stable_s:
                        self._failures = 0
        except SupervisorError as error:
            current.failure = error.failure
        except Exception as error:
            logger.exception("%s: starting or watching its engine failed", self.model)
            current.failure = self._describe_failure("exited", f'model "{self.model}" cannot be run: {error}')
        if current.failure is not None and not current.cancelled:
            # Waiters get it now, before anything is cleaned up; later requests find it counted.
            current.result.settle(self._count(current.failure))
        if current.child is not None and current.child.returncode is None:
            await self._end(current)

    async def _start(self, current: Generation) -> None:
        """Bring it to `ready` within the time limit. Raises `SupervisorError`."""
        if self._asleep is not None and await self._wake_engine(current, self._asleep):
            return
        command_for = await self._lifecycle.prepare()
        limit = self.limits.start_timeout_s
        for attempt in (1, 2):
            with anyio.move_on_after(limit) as clock:
                failure = await self._start_once(current, command_for, clock)
                if failure is None:
                    return
                # Another program took the port before the engine bound it, restored slots crashed the engine (and were
                # deleted), or the memory of the last engine was not free yet: try once more.
                again = failure.kind in ("port_taken", "out_of_memory") or current.restored
                if again and attempt == 1 and current.child is not None:
                    await current.child.end(0)
                    if failure.kind == "out_of_memory":
                        await self._lifecycle.wait_for_memory()
                    continue
                raise SupervisorError(failure)
            assert clock.cancelled_caught
            reason = "responds, but never got ready" if self._phase == "loading" else "does not respond"
            message = f'model "{self.model}" was not ready within {limit:g} s: its engine {reason}'
            raise SupervisorError(self._describe_failure("start_timeout", message))

    async def _wake_engine(self, current: Generation, asleep: SleepingEngine) -> bool:
        """Wake the engine that sleeps, or end it if it does not wake."""
        self._set_phase("loading")
        self._asleep = None
        current.address = await asleep.wake(current, self.limits.start_timeout_s)
        if current.address is None and current.child is not None:
            await current.child.end(0)
            current.child = None
        return current.address is not None

    async def _end_sleeping(self, asleep: SleepingEngine) -> None:
        await asleep.end(self.limits.stop_grace_s, self.log.add)
        self._asleep = None
        self._on_change()

    async def _start_once(
        self, current: Generation, command_for: CommandFactory, clock: anyio.CancelScope
    ) -> Failure | None:
        key = secrets.token_hex(24)  # engines may take it as an argument, which must not begin with a hyphen
        self.log.redact(key)
        try:
            port = free_port(self._host, self._ports, avoid=self._failed_ports)
            command = command_for(port, key)
        except SupervisorError as error:
            self._failed_ports.clear()
            return error.failure
        mark = self.log.count
        engine = command.engine
        readiness = current.readiness = Readiness(engine.ready, anywhere=engine.listens == "anywhere")
        current.restored = False
        holds = command.holds and not current.result.may_load.is_set()
        self._set_phase("preparing" if holds else "starting")
        await clean_up(command, self.log.add)
        failure = self._start_child(current, hold(command) if holds else command)
        if failure is not None:
            return failure
        assert current.child is not None
        self._on_change()
        with anyio.CancelScope() as waiting:
            current.child.on_exit(waiting.cancel)
            if holds:
                await self._let_load(current, current.child, clock)
            await readiness.wait(
                current.child.pid, self._host, port, key, on_first_response=lambda: self._set_phase("loading")
            )
            current.address = EngineAddress(
                model=self.model, host=self._host, port=port, key=key, generation=current.number,
                context=readiness.context or command.context, parallel=command.parallel, protocol=engine.protocol,
                prefix=engine.prefix, key_header=engine.key, model_name=command.model_name,
            )  # fmt: skip
        if current.address is not None:
            self._set_phase("restoring")
            current.restored = True
            with anyio.move_on_after(RESTORING_S):
                await self._lifecycle.restore_slots(current.address)
            # If that crashed the engine, its connections break before its exit is reported: then wait for the exit.
            if not await responds(current.address, engine.ready, timeout_s=1):
                with anyio.move_on_after(1):
                    await current.child.exited.wait()
        if current.child.returncode is None:
            return None
        current.address = None
        failure = explain_exit(self.model, current.child.returncode, self.log.since(mark))
        if failure.kind == "port_taken":
            self._failed_ports.add(port)
        return failure

    async def _let_load(self, current: Generation, child: Child, clock: anyio.CancelScope) -> None:
        """Wait until the engine that holds may load its model. Only from then on its time limit counts.

        Raises `SupervisorError` if that takes too long, or the engine does not read its input.
        """
        clock.deadline = math.inf
        self._set_phase("held")
        with anyio.move_on_after(HOLDING_S) as holding:
            await current.result.may_load.wait()
        if holding.cancelled_caught:
            message = f'model "{self.model}" could not load for {HOLDING_S:g} s: those that stop for it are still there'
            raise SupervisorError(self._describe_failure("start_timeout", message))
        clock.deadline = anyio.current_time() + self.limits.start_timeout_s
        if not child.write_line(LOAD_COMMAND):
            with anyio.move_on_after(1):
                await child.exited.wait()  # then its exit says why
            message = f'the engine of model "{self.model}" waits before loading its model, and does not read the command to load it from its input'
            raise SupervisorError(self._describe_failure("unresponsive", message))
        self._set_phase("starting")

    def _start_child(self, current: Generation, command: EngineCommand) -> Failure | None:
        current.command = command
        try:
            current.child = Child.start(
                command.arguments,
                command.environment,
                lambda stdout, line: self._on_line(current, stdout, line),
                cwd=command.cwd,
            )
        except OSError as error:
            kind: FailureKind = "out_of_memory" if error.errno == 12 else "engine_missing"
            return self._describe_failure(kind, f"engine {command.arguments[0]} cannot be started: {error.strerror}")
        return None

    async def _serve(self, current: Generation) -> None:
        """Be ready until the process exits, hangs, or is stopped. Raises `SupervisorError` for the first two."""
        child, address, command = current.child, current.address, current.command
        assert child is not None
        assert address is not None
        assert command is not None
        own_limit_s = command.engine.watchdog_s
        mark = self.log.count
        self._failure = None
        self._enter("ready", "ready")
        current.result.settle(address)
        with anyio.CancelScope() as serving:
            child.on_exit(serving.cancel)
            limit_s = self.limits.watchdog_s if own_limit_s is None else own_limit_s
            await wait_until_unresponsive(address, limit_s, command.engine.ready)
            message = f'the engine of model "{self.model}" accepts connections but no longer responds'
            raise SupervisorError(self._describe_failure("unresponsive", message))
        raise SupervisorError(explain_exit(self.model, child.returncode, self.log.since(mark), ready=True))

    async def _end(self, current: Generation) -> None:
        """Stop a process that still runs; one that hangs or failed is killed."""
        assert current.child is not None
        gracefully = current.failure is None
        try:
            if self._state in ("starting", "ready"):
                self._enter("stopping", "saving" if gracefully and current.address is not None else "stopping")
            if gracefully and current.address is not None:
                with anyio.move_on_after(SAVING_S) as saving:
                    current.child.on_exit(saving.cancel)
                    await self._lifecycle.save_slots(current.address)
            self._set_phase("stopping")
            if gracefully and current.sleeps:
                self._asleep = await fall_asleep(current)
        except Exception:
            # That costs its conversations, not the host.
            logger.exception("%s: saving its conversations failed", self.model)
        finally:
            if self._asleep is not None and current.sleeps and current.child.returncode is None:
                current.child.on_exit(lambda: self._wake.set())
            else:
                self._asleep = None
                await self._stop_child(current, gracefully=gracefully)

    async def _stop_child(self, current: Generation, *, gracefully: bool) -> None:
        with anyio.CancelScope(shield=True):
            await stop_engine(current, self.limits.stop_grace_s if gracefully else 0, self.log.add)

    def _count(self, failure: Failure) -> Failure:
        """Count one more failure in a row; returns it with the time for which requests fail at once."""
        self._failures += 1
        delay = backoff_delay_s(self._failures, self.limits.backoff_s, self.limits.max_backoff_s)
        self._backoff_until = time.monotonic() + delay
        failed = after_failure(self._failures, self.limits.max_failures) == "failed"
        self._failure = msgspec.structs.replace(failure, retry_after_s=delay if failed else None)
        return self._failure

    def _after_generation(self, current: Generation) -> None:
        """Enter `stopped`, or `backoff` or `failed` after a failure."""
        if current.failure is None or current.cancelled:
            if self._state == "starting":
                self._enter("stopping")
            self._enter("stopped")
            return
        following = after_failure(self._failures, self.limits.max_failures)
        if current.address is not None and following == "backoff" and not self.limits.keep and self._failures == 1:
            # It died after it was ready: the next request starts it and need not know of this failure.
            following = "stopped"
        self._enter(following, "idle")

    def _on_line(self, current: Generation, from_stdout: bool, line: str) -> None:
        current.readiness.on_line(line)
        if not (from_stdout and current.readiness.on_stdout(line)):
            self.log.add(line)
        elif self._phase == "starting":
            self._set_phase("loading")
        else:
            self._on_change()

    def _describe_failure(self, kind: FailureKind, message: str) -> Failure:
        return Failure(kind=kind, message=message, lines=tuple(self.log.tail(LINES_KEPT)))
