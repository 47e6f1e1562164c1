"""The cluster's storm: clients that go to another gateway when theirs is dead, and what happens to everything meanwhile."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Literal

import anyio
import httpx
import msgspec
from chaos.cluster_world import FREE, GATEWAYS, HOSTS, METERED, PACED, ClusterWorld, EngineLink, make_request
from chaos.judge import StormRequest, Verdict, judge
from chaos.storm import Lost
from chaos.world import Program, freeze, resume
from fakes.tcp_proxy import TcpProxy

#: How long a client goes on asking, and waits for one answer, in seconds.
PATIENCE_S, ANSWER_S = 180.0, 90.0
#: The longest pause between two tries, and between two requests, in seconds.
LONGEST_PAUSE_S, LONGEST_THOUGHT_S = 1.0, 0.2
#: The keys of clients that ask at the same time. Those with limits have two each, so that they are at different gateways.
CLIENTS = (*FREE, METERED, METERED, PACED, PACED)
#: For so many requests there is one more client of each key without limits.
_REQUESTS_OF_CLIENTS = 2500


class Try(msgspec.Struct, frozen=True, kw_only=True):
    """One time that a request was sent, under a name of its own. `limited`: its key has reached a limit; `dead`: its gateway
    was ended meanwhile."""

    request: StormRequest
    key: str
    gateway: str
    sent: float
    ended: float
    verdict: Verdict | Literal["limited", "dead"]


class ClusterStorm:
    """`requests` requests while everything happens that chance takes from `seed`."""

    def __init__(self, world: ClusterWorld, http: httpx.AsyncClient, *, requests: int, seed: int) -> None:
        self._world = world
        self._http = http
        self._chance = random.Random(seed)
        self._numbers: Iterator[int] = iter(range(requests))
        self._clients = CLIENTS + FREE * min(3, requests // _REQUESTS_OF_CLIENTS)
        self.tries: list[Try] = []
        self.answered: list[str] = []
        self.actions: Counter[str] = Counter()

    async def run(self) -> None:
        """Until each request is answered, or refused by a limit. Raises `Lost` and `Lie`."""
        async with anyio.create_task_group() as weather:
            for actions in (PROGRAMS, LINKS):
                weather.start_soon(self._rage, actions, random.Random(self._chance.random()))
            async with anyio.create_task_group() as clients:
                for key in self._clients:
                    clients.start_soon(self._client, key, random.Random(self._chance.random()))
            weather.cancel_scope.cancel()

    # Clients

    async def _client(self, key: str, chance: random.Random) -> None:
        for number in self._numbers:
            request = make_request(number, chance, limited=key in (METERED, PACED))
            limited = await self._ask(request, key, chance)
            self.answered.append(request.name)
            await anyio.sleep(LONGEST_PAUSE_S if limited else chance.uniform(0.0, LONGEST_THOUGHT_S))

    async def _ask(self, request: StormRequest, key: str, chance: random.Random) -> bool:
        """Send the request until it is answered, as a client of several gateways does that obeys `Retry-After`. Returns
        whether a limit of its key has ended it."""
        began, tries, last = time.monotonic(), 0, ""
        while time.monotonic() - began < PATIENCE_S:
            tries += 1
            gateway = chance.choice(self._world.gateways)
            # Engines see by the name which gateway has asked them.
            sent = msgspec.structs.replace(request, name=f"{request.name}t{tries}g{gateway.name[-1]}")
            verdict, last, pause_s = await self._send(sent, key, gateway)
            if verdict in ("complete", "limited"):
                return verdict == "limited"
            await anyio.sleep(min(LONGEST_PAUSE_S, pause_s) * chance.uniform(1.0, 1.2))
        raise Lost(f"{request}: not answered in {PATIENCE_S:g} s and {tries} tries; the last: {last[:500]}")

    async def _send(
        self, request: StormRequest, key: str, gateway: Program
    ) -> tuple[Verdict | Literal["limited", "dead"], str, float]:
        """One try: what came of it, in which words, and the pause before another one."""
        starts, sent, pause_s = gateway.starts, time.monotonic(), 0.1
        verdict: Verdict | Literal["limited", "dead"]
        try:
            answer = await self._http.post(
                f"{self._world.url(gateway)}{request.path}",
                json=request.body,
                headers=self._world.auth(key),
                timeout=ANSWER_S,
            )
        except httpx.TransportError as error:
            last = repr(error)
            if gateway.starts != starts or not gateway.up:
                verdict = "dead"
            elif isinstance(error, httpx.RemoteProtocolError) and not request.stream:
                verdict = "broken"  # a whole answer that has begun can only be broken off
            else:
                raise Lost(f"{request}: {error!r} from {gateway.name}, which runs") from error
        else:
            last, verdict = answer.text, judge(request, answer.status_code, answer.text)
            pause_s = float(answer.headers.get("retry-after") or 0.2)
            if verdict == "refused" and answer.status_code == 429 and key in (METERED, PACED) and " limit" in last:
                verdict = "limited"
        self.tries.append(
            Try(request=request, key=key, gateway=gateway.name, sent=sent, ended=time.monotonic(), verdict=verdict)
        )
        return verdict, last, pause_s

    # Weather

    async def _rage(self, actions: Sequence[Action], chance: random.Random) -> None:
        """One thing after the other happens, and passes."""
        while True:
            name, action = chance.choice(actions)
            self.actions[name] += 1
            with anyio.CancelScope(shield=True):  # what was done is undone
                await action(self._world, chance)
            await anyio.sleep(chance.uniform(0.05, 0.5))


Action = tuple[str, Callable[[ClusterWorld, random.Random], Awaitable[None]]]


async def _kill_engine(world: ClusterWorld, chance: random.Random) -> None:
    host = chance.choice(world.hosts)
    with world.disturbed("kill_engine", host.name):
        for process in host.engines():
            process.kill()
        await anyio.sleep(0.1)


async def _freeze_engine(world: ClusterWorld, chance: random.Random) -> None:
    host = chance.choice(world.hosts)
    with world.disturbed("freeze_engine", host.name):
        engines = host.engines()
        for process in engines:
            freeze(process)
        await anyio.sleep(chance.uniform(0.2, 2.0))
        for process in engines:
            resume(process)


def _restart(end: Callable[[Program], Awaitable[None]], *, gateway: bool) -> Action:
    async def restart(world: ClusterWorld, chance: random.Random) -> None:
        program = chance.choice(world.gateways if gateway else world.hosts)
        with world.disturbed(end.__name__, program.name):
            await end(program)
            await anyio.sleep(chance.uniform(0.0, 1.0))
            await program.start()

    return f"{end.__name__}_{'gateway' if gateway else 'host'}", restart


def _freeze(*, gateway: bool) -> Action:
    async def freeze_program(world: ClusterWorld, chance: random.Random) -> None:
        program = chance.choice(world.gateways if gateway else world.hosts)
        with world.disturbed("freeze", program.name):
            program.freeze()
            await anyio.sleep(chance.uniform(0.3, 5.0))
            program.resume()

    return f"freeze_{'gateway' if gateway else 'host'}", freeze_program


async def _disconnect(
    world: ClusterWorld, chance: random.Random, pairs: Sequence[tuple[str, str]], *, longest_s: float = 5.0
) -> None:
    """Let these links carry nothing for a while, or break them: those to supervisors, to engines, or both."""
    ways: list[Mapping[tuple[str, str], TcpProxy | EngineLink]] = [world.links]
    if all(other != "store" for _, other in pairs):
        ways = chance.choice(([world.links], [world.engine_links], [world.links, world.engine_links]))
    links = [way[pair] for way in ways for pair in pairs]
    with ExitStack() as stack:
        for gateway, other in pairs:
            if other != "store":
                stack.enter_context(world.disturbed("partition", gateway, other))
        breaks = chance.random() < 0.3
        for link in links:
            await link.cut() if breaks else link.hold()
        await anyio.sleep(chance.uniform(0.3, longest_s))
        for link in links:
            link.restore()


async def _part_gateway_and_host(world: ClusterWorld, chance: random.Random) -> None:
    await _disconnect(world, chance, [(chance.choice(GATEWAYS), chance.choice(list(HOSTS)))])


async def _isolate_host(world: ClusterWorld, chance: random.Random) -> None:
    host = chance.choice(list(HOSTS))
    await _disconnect(world, chance, [(gateway, host) for gateway in GATEWAYS])


async def _isolate_gateway(world: ClusterWorld, chance: random.Random) -> None:
    gateway = chance.choice(GATEWAYS)
    await _disconnect(world, chance, [(gateway, host) for host in HOSTS])


async def _part_all_from_store(world: ClusterWorld, chance: random.Random) -> None:
    await _disconnect(world, chance, [(gateway, "store") for gateway in GATEWAYS])


async def _kill_store(world: ClusterWorld, chance: random.Random) -> None:
    """The store dies, and is empty when it is back."""
    world.store.kill()
    await anyio.sleep(chance.uniform(0.0, 2.0))
    await anyio.to_thread.run_sync(world.store.start)


async def _freeze_store(world: ClusterWorld, chance: random.Random) -> None:
    world.store.suspend()
    await anyio.sleep(chance.uniform(0.1, 4.0))
    world.store.resume()


async def _empty_store(world: ClusterWorld, _: random.Random) -> None:
    """Delete all entries of the store; its connections stay open."""
    await anyio.to_thread.run_sync(world.store, "FLUSHALL")


async def _make_store_read_only(world: ClusterWorld, chance: random.Random) -> None:
    await anyio.to_thread.run_sync(world.store, "REPLICAOF", "127.0.0.1", "1")
    await anyio.sleep(chance.uniform(0.1, 2.0))
    await anyio.to_thread.run_sync(world.store, "REPLICAOF", "NO", "ONE")


#: What happens to the programs, and what happens to the links between them and to the store.
PROGRAMS: tuple[Action, ...] = (
    ("kill_engine", _kill_engine),
    ("freeze_engine", _freeze_engine),
    *(_restart(end, gateway=False) for end in (Program.stop, Program.kill, Program.crash)),
    *(_restart(end, gateway=True) for end in (Program.stop, Program.kill)),
    _freeze(gateway=False),
    _freeze(gateway=True),
)
LINKS: tuple[Action, ...] = (
    ("part_gateway_and_host", _part_gateway_and_host),
    ("isolate_host", _isolate_host),
    ("isolate_gateway", _isolate_gateway),
    ("part_all_from_store", _part_all_from_store),
    ("kill_store", _kill_store),
    ("freeze_store", _freeze_store),
    ("empty_store", _empty_store),
    ("make_store_read_only", _make_store_read_only),
)
