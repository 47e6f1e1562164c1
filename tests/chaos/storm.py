"""The storm: clients that ask and obey, and what happens to the programs meanwhile."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence

import anyio
import httpx
import msgspec
import psutil
from chaos import backend as scripted
from chaos.judge import StormRequest, Verdict, judge
from chaos.world import MODELS, Program, World, freeze, resume

#: How long a client goes on asking, and waits for one answer, in seconds.
PATIENCE_S, ANSWER_S = 120.0, 60.0
#: The longest pause between two tries, in seconds.
LONGEST_PAUSE_S = 2.0

#: The longest pause of a client between two requests, in seconds: the weather is to change meanwhile.
LONGEST_THOUGHT_S = 0.8

#: Kinds of faults that backends can be ordered to have.
REFUSALS, BREAKS, BROKEN_SUCCESSES = scripted.REFUSALS, scripted.BREAKS, scripted.BROKEN_SUCCESSES
ALL_FAULTS = (*REFUSALS, *BREAKS, *BROKEN_SUCCESSES, *scripted.LABELS)


class Lost(AssertionError):
    """A request got no answer, however often it was sent."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one request, and how often it was sent."""

    request: StormRequest
    verdict: Verdict
    tries: int


class Storm:
    """`requests` requests, `at_once` at a time, while `kinds` of faults and all actions happen by `seed`."""

    def __init__(
        self, world: World, http: httpx.AsyncClient, *, requests: int, at_once: int, kinds: Sequence[str], seed: int
    ) -> None:
        self._world = world
        self._http = http
        self._chance = random.Random(seed)
        self._kinds = tuple(kinds)
        self._at_once = at_once
        self._numbers: Iterator[int] = iter(range(requests))
        self.outcomes: list[Outcome] = []
        self.actions: Counter[str] = Counter()

    async def run(self) -> None:
        """Until each request has its outcome. Raises `Lost` and `Lie`."""
        async with anyio.create_task_group() as weather:
            weather.start_soon(self._fail)
            weather.start_soon(self._rage)
            async with anyio.create_task_group() as clients:
                for index in range(self._at_once):
                    clients.start_soon(self._client, random.Random(self._chance.random() + index))
            weather.cancel_scope.cancel()

    # Clients

    async def _client(self, chance: random.Random) -> None:
        for number in self._numbers:
            request = StormRequest.make(number, MODELS, chance)
            self.outcomes.append(await self._ask(request, chance))
            await anyio.sleep(chance.uniform(0.0, LONGEST_THOUGHT_S))

    async def _ask(self, request: StormRequest, chance: random.Random) -> Outcome:
        """Send the request until it is answered, as a client does that obeys `Retry-After`."""
        began, tries, last = time.monotonic(), 0, ""
        while time.monotonic() - began < PATIENCE_S:
            gateway = chance.choice(self._world.gateways)
            starts, tries = gateway.starts, tries + 1
            try:
                answer = await self._http.post(
                    f"{self._world.url(gateway)}{request.path}", json=request.body, timeout=ANSWER_S
                )
            except httpx.RemoteProtocolError as error:
                if gateway.starts == starts and gateway.up and request.stream:
                    raise Lost(f"{request}: a stream ended without a word: {error!r}") from error
                if gateway.starts == starts and gateway.up:
                    # A whole answer that has begun can only be broken off.
                    return Outcome(request=request, verdict="broken", tries=tries)
                last = repr(error)
            except httpx.TransportError as error:
                if gateway.starts == starts and gateway.up:
                    raise Lost(f"{request}: {error!r} from a gateway that runs") from error
                last = repr(error)
            else:
                verdict = judge(request, answer.status_code, answer.text)
                if verdict != "refused":
                    return Outcome(request=request, verdict=verdict, tries=tries)
                last = answer.text
                pause_s = float(answer.headers.get("retry-after") or 0.2)
                await anyio.sleep(min(LONGEST_PAUSE_S, pause_s) * chance.uniform(1.0, 1.2))
                continue
            await anyio.sleep(0.1)
        raise Lost(f"{request}: not answered in {PATIENCE_S:g} s and {tries} tries; the last: {last[:500]}")

    # Weather

    async def _fail(self) -> None:
        """Backends fail requests now and then, in some of the ways."""
        chance = random.Random(self._chance.random())
        while self._kinds:
            some = chance.sample(self._kinds, chance.randint(1, min(4, len(self._kinds))))
            self._world.order_faults(some, chance.choice((0.1, 0.3, 1.0)))
            self.actions.update(some)
            try:
                await anyio.sleep(chance.uniform(0.5, 2.0))
            finally:
                self._world.order_faults((), 0.0)
            await anyio.sleep(chance.uniform(0.2, 1.0))

    async def _rage(self) -> None:
        """One thing after the other happens, and passes."""
        while True:
            name, action = self._chance.choice(ACTIONS)
            self.actions[name] += 1
            with anyio.CancelScope(shield=True):  # what was done is undone
                await action(self)
            await anyio.sleep(self._chance.uniform(0.05, 0.5))

    async def _hold(self, least: float = 0.2, most: float = 2.0) -> None:
        await anyio.sleep(self._chance.uniform(least, most))

    async def kill_engine(self) -> None:
        """An engine dies."""
        for process in self._some_engine():
            process.kill()

    async def freeze_engine(self) -> None:
        """An engine hangs for a while."""
        for process in self._some_engine():
            freeze(process)
            await self._hold()
            resume(process)

    def _some_engine(self) -> list[psutil.Process]:
        found = [process for machine in self._world.machines for process in machine.engines()]
        return self._chance.sample(found, 1) if found else []

    def _machine(self) -> Program:
        return self._chance.choice(self._world.machines)

    async def stop_machine(self) -> None:
        """A supervisor is restarted."""
        await self._restart(self._machine(), Program.stop)

    async def kill_machine(self) -> None:
        """A machine loses power."""
        await self._restart(self._machine(), Program.kill)

    async def crash_supervisor(self) -> None:
        """A supervisor dies beside its engines."""
        await self._restart(self._machine(), Program.crash)

    async def freeze_machine(self) -> None:
        """A machine sleeps for a while."""
        machine = self._machine()
        machine.freeze()
        await self._hold(0.5, 4.0)
        machine.resume()

    async def stop_gateway(self) -> None:
        """The gateway is restarted."""
        await self._restart(self._chance.choice(self._world.gateways), Program.stop)

    async def kill_gateway(self) -> None:
        """The gateway dies."""
        await self._restart(self._chance.choice(self._world.gateways), Program.kill)

    async def _restart(self, program: Program, end: Callable[[Program], Awaitable[None]]) -> None:
        await end(program)
        await self._hold(0.0, 1.0)
        await program.start()

    async def kill_cloud(self) -> None:
        """The cloud goes away for a while."""
        await self._world.cloud.kill()
        await self._hold()
        await self._world.cloud.start()

    async def disk_full(self) -> None:
        """A program can write to no file."""
        with self._chance.choice(self._world.programs).disk_full():
            await self._hold()

    async def clock_jump(self) -> None:
        """All clocks are set, and set back."""
        self._world.set_clock(self._chance.choice((-86_400.0, -3600.0, 3600.0, 86_400.0 * 30)))
        await self._hold()
        self._world.set_clock(0.0)

    async def save_change(self) -> None:
        """A machine's file is saved with another model, and with the old ones again."""
        machine = self._machine()
        profiles = {**machine.document["profiles"], "more": {"base": "a", "context": self._chance.randrange(512, 4096)}}
        machine.file.write_text(json.dumps({**machine.document, "profiles": profiles}))
        await self._hold(0.5, 3.0)
        machine.file.write_text(json.dumps(machine.document))

    async def save_mistake(self) -> None:
        """A file is saved with a mistake, perhaps over a restart, and corrected."""
        program = self._chance.choice(self._world.programs)
        program.file.write_text(self._chance.choice(("gateway: [", "", "profiles: {a: {modell: x}}", "backends: 7")))
        await self._hold(0.3, 1.0)
        if self._chance.random() < 0.7:
            await self._restart(program, self._chance.choice((Program.stop, Program.kill)))
        await self._hold(0.0, 1.0)
        program.file.write_text(json.dumps(program.document))


#: What happens to the programs.
ACTIONS: tuple[tuple[str, Callable[[Storm], Awaitable[None]]], ...] = (
    ("kill_engine", Storm.kill_engine),
    ("freeze_engine", Storm.freeze_engine),
    ("stop_machine", Storm.stop_machine),
    ("kill_machine", Storm.kill_machine),
    ("crash_supervisor", Storm.crash_supervisor),
    ("freeze_machine", Storm.freeze_machine),
    ("stop_gateway", Storm.stop_gateway),
    ("kill_gateway", Storm.kill_gateway),
    ("kill_cloud", Storm.kill_cloud),
    ("disk_full", Storm.disk_full),
    ("clock_jump", Storm.clock_jump),
    ("save_change", Storm.save_change),
    ("save_mistake", Storm.save_mistake),
)
