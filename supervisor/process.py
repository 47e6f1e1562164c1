"""One model's process through all its lives: a wish that anybody may set, and one task that fulfils it."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from typing import Final, Literal

import anyio
import msgspec

from hostler.supervisor.child import Child
from hostler.supervisor.command import EngineCommand, free_port
from hostler.supervisor.contract import EngineAddress, Failure, FailureKind, State, SupervisorError
from hostler.supervisor.engine_client import EXIT_LINE, Readiness, get_status, until_silent
from hostler.supervisor.logs import EngineLog
from hostler.supervisor.states import LINES_KEPT, advance, after_failure, backoff_delay_s, explain_exit


class StartResult:
    """What an order came to: an address or a failure. Any number may wait for it, cancelling one touches no other."""

    def __init__(self) -> None:
        self._settled = anyio.Event()
        self._address: EngineAddress | None = None
        self._failure: Failure | None = None

    @property
    def settled(self) -> bool:
        return self._settled.is_set()

    def settle(self, result: EngineAddress | Failure) -> None:
        """Tell all who wait. Only the first result counts."""
        if self._settled.is_set():
            return
        if isinstance(result, Failure):
            self._failure = result
        else:
            self._address = result
        self._settled.set()

    async def get(self) -> EngineAddress:
        """Wait for it; raises `SupervisorError`."""
        await self._settled.wait()
        if self._address is None:
            assert self._failure is not None
            raise SupervisorError(self._failure)
        return self._address


ProcessPhase = Literal["idle", "preparing", "starting", "loading", "restoring", "ready", "saving", "stopping"]

#: Given a port and a key, the command line.
CommandBuilder = Callable[[int, str], EngineCommand]


class ProcessLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The times and counts of one process; seconds. With `keep` it is started again by itself when it died."""

    start_timeout_s: float = 300.0
    stop_grace_s: float = 10.0
    max_failures: int = 3
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    stable_s: float = 30.0
    watchdog_s: float = 30.0
    keep: bool = False


class Hooks:
    """What others do at fixed points of a life. Replace what is needed; each is bounded by a limit of its own.

    `prepare` runs before anything is started and may take long (a download); it may raise `SupervisorError`.
    `ready` runs when the engine answers and before anybody is told, `stopping` before an engine is told to end.
    """

    async def prepare(self) -> CommandBuilder:
        raise NotImplementedError

    async def ready(self, address: EngineAddress) -> None:
        """The engine answers; nobody else uses it yet."""

    async def stopping(self, address: EngineAddress) -> None:
        """The engine still answers; it will be stopped next."""


class Generation:
    """One generation, from the order to the end of its last process. Its results reach only those who wait for it."""

    def __init__(self, generation: int, outcome: StartResult) -> None:
        self.generation = generation
        self.outcome = outcome
        self.scope = anyio.CancelScope()
        self.gone = anyio.Event()
        self.readiness = Readiness()
        self.doomed = False
        self.child: Child | None = None
        self.address: EngineAddress | None = None
        self.was_restoring = False
        self.failure: Failure | None = None

    def doom(self) -> None:
        """This generation is to end, whatever it is at."""
        self.doomed = True
        self.scope.cancel()

    @property
    def serving(self) -> bool:
        return self.address is not None and not self.doomed and self.child is not None and self.child.running


#: What `Hooks.ready` and `Hooks.stopping` may take at most.
RESTORING_S: Final = 30.0
SAVING_S: Final = 30.0


logger = logging.getLogger(__name__)


class ManagedProcess:
    """Keeps at most one engine for one model.

    `ensure_ready` and `stop` say what is wanted and wait for it; `run`, the only writer of the state, makes it so.
    Cancelling who waits changes nothing; cancelling `run` leaves no process.
    """

    def __init__(
        self, model: str, hooks: Hooks, limits: ProcessLimits, log: EngineLog, *, host: str = "127.0.0.1", ports: range | None = None,
        changed: Callable[[ManagedProcess], None] | None = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.log = log
        self._hooks = hooks
        self.limits = limits
        self._host = host
        self._ports = ports
        self._changed = changed or (lambda _: None)
        self._state: State = "stopped"
        self._phase: ProcessPhase = "idle"
        self._since = time.time()
        self._generation = 0
        self._failures = 0
        self._failure: Failure | None = None
        self._rest_until = 0.0
        self._life: Generation | None = None
        self._next: StartResult | None = None
        self._wanted = anyio.Event()
        self._ports_that_failed: set[int] = set()

    # What is so. For people and snapshots; nobody decides by it whether to start or to stop.

    @property
    def state(self) -> State:
        return self._state

    @property
    def phase(self) -> ProcessPhase:
        """What exactly it is at, within its state."""
        return self._phase

    @property
    def since(self) -> float:
        """When the state was entered, in seconds since the epoch."""
        return self._since

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def failure(self) -> Failure | None:
        """Why it last failed, until it is ready again."""
        return self._failure

    @property
    def alive(self) -> bool:
        """Whether anything of it may still run, be it on its way out."""
        return self._life is not None

    @property
    def standing(self) -> bool:
        """Whether it runs, or is being started, and is not on its way out."""
        return self._life is not None and not self._life.doomed and self._life.failure is None

    @property
    def pid(self) -> int | None:
        life = self._life
        return life.child.pid if life is not None and life.child is not None and life.child.returncode is None else None

    @property
    def progress(self) -> float | None:
        """How much of the file is loaded, 0 to 1, if the engine says so."""
        return self._life.readiness.progress if self._life is not None and self._state == "starting" else None

    @property
    def address(self) -> EngineAddress | None:
        """Where it listens, if it is ready now."""
        life = self._life
        return life.address if life is not None and self._state == "ready" and life.serving else None

    # What is wanted.

    async def ensure_ready(self) -> EngineAddress:
        """Wait until it is ready. Raises `SupervisorError` at once when it fails, or while it rests after failures."""
        return await self.order().get()

    def order(self) -> StartResult:
        """Want it ready, and wait (or not) for what comes of it.

        `ready` settles at once, `starting` joins, `stopping` starts anew afterwards, `failed` fails at once until its
        pause is over; from all other states it starts now.
        """
        life = self._life
        if life is not None and not life.doomed and (life.child is None or life.child.running):
            return life.outcome
        if self._failures >= self.limits.max_failures and self._failure is not None:
            left = self._rest_until - time.monotonic()
            if left > 0:
                refused = StartResult()
                refused.settle(msgspec.structs.replace(self._failure, retry_after_s=left))
                return refused
        if self._next is None:
            self._next = StartResult()
            self._wanted.set()
        return self._next

    async def stop(self) -> None:
        """End what runs and return when its whole group is gone. Whoever waits for it is told that it was cancelled."""
        cancelled = Failure(kind="cancelled", message=f'model "{self.model}" was unloaded')
        if self._next is not None:
            self._next.settle(cancelled)
            self._next = None
        life = self._life
        if life is not None:
            life.outcome.settle(cancelled)
            life.doom()
            await life.gone.wait()

    async def ended(self) -> None:
        """Wait until what runs now has ended, by itself or because somebody else wants it to."""
        life = self._life
        if life is not None:
            await life.gone.wait()

    def forgive(self) -> None:
        """Forget earlier failures: the next order tries at once."""
        self._failures = 0
        self._rest_until = 0.0
        self._wanted.set()

    # The one task.

    async def run(self) -> None:
        """Fulfil what is wanted, for ever."""
        while True:
            outcome = await self._until_wanted()
            self._next = None
            self._generation += 1
            life = self._life = Generation(self._generation, outcome)
            try:
                await self._live(life)
            finally:
                life.doomed = life.doomed or life.failure is None
                if life.child is not None:
                    with anyio.CancelScope(shield=True):
                        if life.child.returncode is None:
                            await self._end(life)
                        await life.child.end(0)
                self._life = None
                life.outcome.settle(Failure(kind="cancelled", message="the supervisor is stopping"))
                life.gone.set()
            self._rest(life)

    async def _until_wanted(self) -> StartResult:
        while True:
            if self._next is not None:
                if self._state == "failed":
                    self._enter("stopped")
                return self._next
            self._wanted = anyio.Event()
            left = self._rest_until - time.monotonic()
            resting = self._state in ("backoff", "failed")
            if resting and left <= 0:
                if self.limits.keep and self._state == "backoff":
                    self._next = StartResult()
                    continue
                self._enter("stopped")
                resting = False
            with anyio.move_on_after(left if resting else None):
                await self._wanted.wait()

    async def _live(self, life: Generation) -> None:
        """From the order to the end of the process. What went wrong is left in `life.failure`."""
        self._enter("starting", "preparing")
        try:
            with life.scope:
                await self._start(life)
                started = time.monotonic()
                try:
                    await self._serve(life)
                finally:
                    if time.monotonic() - started >= self.limits.stable_s:
                        self._failures = 0
        except SupervisorError as error:
            life.failure = error.failure
        except Exception as error:
            logger.exception("starting or watching model %s failed", self.model)
            life.failure = self._failed("exited", f'model "{self.model}" cannot be run: {error}')
        if life.failure is not None and not life.doomed:
            # Whoever waits hears of it now, before anything is cleared away; whoever asks next finds it counted.
            life.outcome.settle(self._count(life.failure))
        if life.child is not None and life.child.returncode is None:
            await self._end(life)

    async def _start(self, life: Generation) -> None:
        """Bring it to `ready`, or raise `SupervisorError`. Ends at its limit, whatever it is at."""
        build = await self._hooks.prepare()
        limit = self.limits.start_timeout_s
        for attempt in (1, 2):
            self._set_phase("starting")
            with anyio.move_on_after(limit) as clock:
                failure = await self._start_once(life, build)
                if failure is None:
                    return
                # Somebody was faster between our look and the engine's bind, or what was kept of an earlier engine
                # killed this one (and was thrown away): once more.
                again = failure.kind == "port_taken" or life.was_restoring
                if again and attempt == 1 and life.child is not None:
                    await life.child.end(0)
                    continue
                raise SupervisorError(failure)
            assert clock.cancelled_caught
            answers = "answers, but never got ready" if self._phase == "loading" else "does not answer"
            message = f'model "{self.model}" was not ready in {limit:g} s: its engine {answers}'
            raise SupervisorError(self._failed("start_timeout", message))

    async def _start_once(self, life: Generation, build: CommandBuilder) -> Failure | None:
        key = secrets.token_urlsafe(24)
        self.log.hide(key)
        try:
            port = free_port(self._host, self._ports, avoid=self._ports_that_failed)
            command = build(port, key)
        except SupervisorError as error:
            self._ports_that_failed.clear()
            return error.failure
        mark = self.log.count
        readiness = life.readiness = Readiness()
        life.was_restoring = False
        try:
            life.child = Child.start(
                command.arguments, command.environment, lambda stdout, line: self._hear(life, stdout, line)
            )
        except OSError as error:
            kind: FailureKind = "out_of_memory" if error.errno == 12 else "engine_missing"
            return self._failed(kind, f"the engine {command.arguments[0]} cannot be started: {error.strerror}")
        self._changed(self)
        with anyio.CancelScope() as waiting:
            life.child.on_exit(waiting.cancel)
            await readiness.until_answers(
                life.child.pid, self._host, port, key, answering=lambda: self._set_phase("loading")
            )
            life.address = EngineAddress(
                model=self.model, host=self._host, port=port, key=key, generation=life.generation,
                context=readiness.context or command.context, parallel=command.parallel,
            )  # fmt: skip
        if life.address is not None:
            self._set_phase("restoring")
            life.was_restoring = True
            with anyio.move_on_after(RESTORING_S):
                await self._hooks.ready(life.address)
            # If that killed the engine, its connections break before its end is told: then wait for the end.
            if await get_status(self._host, port, "/health", timeout_s=1) is None:
                with anyio.move_on_after(1):
                    await life.child.exited.wait()
        if life.child.returncode is None:
            return None
        life.address = None
        failure = explain_exit(self.model, life.child.returncode, self.log.since(mark))
        if failure.kind == "port_taken":
            self._ports_that_failed.add(port)
        return failure

    async def _serve(self, life: Generation) -> None:
        """Be ready until the process dies, hangs, or is stopped. Raises `SupervisorError` for the first two."""
        child, address = life.child, life.address
        assert child is not None
        assert address is not None
        mark = self.log.count
        self._failure = None
        self._enter("ready", "ready")
        life.outcome.settle(address)
        with anyio.CancelScope() as serving:
            child.on_exit(serving.cancel)
            await until_silent(address, self.limits.watchdog_s)
            message = f'the engine of model "{self.model}" accepts connections but answers nothing any more'
            raise SupervisorError(self._failed("unresponsive", message))
        raise SupervisorError(explain_exit(self.model, child.returncode, self.log.since(mark), ready=True))

    async def _end(self, life: Generation) -> None:
        """Stop a process that still runs; a hanging or failed one without ceremony."""
        assert life.child is not None
        gently = life.failure is None
        try:
            if self._state in ("starting", "ready"):
                self._enter("stopping", "saving" if gently and life.address is not None else "stopping")
            if gently and life.address is not None:
                with anyio.move_on_after(SAVING_S) as saving:
                    life.child.on_exit(saving.cancel)
                    await self._hooks.stopping(life.address)
            self._set_phase("stopping")
        finally:
            with anyio.CancelScope(shield=True):
                words = EXIT_LINE if life.readiness.says_ready and gently else None
                await life.child.end(self.limits.stop_grace_s if gently else 0, last_words=words)

    def _count(self, failure: Failure) -> Failure:
        """One more failure in a row; returns it with how long that makes us fail fast."""
        self._failures += 1
        pause = backoff_delay_s(self._failures, self.limits.backoff_s, self.limits.max_backoff_s)
        self._rest_until = time.monotonic() + pause
        fast = after_failure(self._failures, self.limits.max_failures) == "failed"
        self._failure = msgspec.structs.replace(failure, retry_after_s=pause if fast else None)
        return self._failure

    def _rest(self, life: Generation) -> None:
        """The state after a life: quietly stopped, or resting after a failure."""
        if life.failure is None or life.doomed:
            if self._state == "starting":
                self._enter("stopping")
            self._enter("stopped")
            return
        following = after_failure(self._failures, self.limits.max_failures)
        if life.address is not None and following == "backoff" and not self.limits.keep and self._failures == 1:
            # It died while nobody was starting it: the next request starts it and need not hear of this.
            following = "stopped"
        self._enter(following, "idle")

    def _hear(self, life: Generation, from_stdout: bool, line: str) -> None:
        if not (from_stdout and life.readiness.hear(line)):
            self.log.add(line)
        elif self._phase == "starting":
            self._set_phase("loading")
        else:
            self._changed(self)

    def _failed(self, kind: FailureKind, message: str) -> Failure:
        return Failure(kind=kind, message=message, lines=tuple(self.log.tail(LINES_KEPT)))

    def _enter(self, state: State, phase: ProcessPhase | None = None) -> None:
        """The only place where the state changes."""
        self._state = advance(self._state, state)
        self._since = time.time()
        self._phase = phase or ("idle" if state == "stopped" else self._phase)
        self._changed(self)

    def _set_phase(self, phase: ProcessPhase) -> None:
        if phase != self._phase:
            self._phase = phase
            self._changed(self)
