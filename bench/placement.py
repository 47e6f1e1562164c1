"""Placement over many hosts, simulated with the gateway's ranking and each host's own scheduler: `python -m bench placement`.

Nothing here takes time but the decisions: loads, answers and failures are events of a simulated clock. Gateways see every
host as it is, where real ones see what it published a tenth of a second ago.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from hostler.adapters.canonical import Usage
from hostler.gateway.host_ranking import better_host, is_replica, rank
from hostler.supervisor.contract import HostStatus, ProfileInfo
from hostler.supervisor.scheduling.queue import Ticket
from hostler.supervisor.scheduling.scheduler import Scheduler
from hostler.supervisor.scheduling.types import Decision, Grant, Refuse, SchedulerSettings, StartSwitch, Unload
from hostler.supervisor.scheduling.views import HostOffer

#: Simulated seconds: a process stops, a gateway looks for better hosts, asks again after a refusal.
STOP_S, LOOK_S, AGAIN_S = 1.0, 1.0, 1.0
#: Requests of each model that a gateway looks at, and the settings of `gateway.placement`.
LOOKED_AT, REPLICA_WAIT_S, REPLICA_IDLE_S = 5, 2.0, 300.0

_UNLIMITED = SchedulerSettings(max_waiting=10**6, max_wait_s=10**6)


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated: each model is allowed on `spread` hosts, a host holds `room` models, and `failures` hosts fail for
    `down_s` seconds each. Every client sends `requests`, one after the other. Speeds differ by the factor `fastest`."""

    hosts: int = 100
    models: int = 1000
    clients: int = 10_000
    requests: int = 1
    spread: int = 10
    room: int = 4
    parallel: int = 2
    load_s: float = 8.0
    tokens: float = 200.0
    tokens_per_s: float = 40.0
    fastest: float = 4.0
    failures: int = 20
    down_s: float = 60.0
    think_s: float = 30.0
    seed: int = 1


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """`makespan_s` is when the last answer ended, `bound_s` what no placement can beat: all work, evenly on all slots.
    `jain` is the fairness between clients, by the share of each client's time that its answers took. `switches` are loads,
    `repeated` the requests that a failure cut off, `moved` those that another host served than the one asked first,
    since it was sooner, or since the first one failed."""

    makespan_s: float
    bound_s: float
    jain: float
    switches: int
    answers: int
    repeated: int
    moved: int
    mean_wait_s: float
    worst_wait_s: float
    decision_us: float


class Job(msgspec.Struct, eq=False):
    """A request; `tickets` are its places, by host, until one is granted."""

    client: int
    model: str
    tokens: float
    at: float
    tickets: dict[str, int] = {}
    first: str = ""
    host: str | None = None


class SimulatedHost:
    """A host with the real scheduler, whose orders take simulated time."""

    def __init__(
        self, world: World, name: str, speed: float, models: Sequence[str], size: Size, *, exclusive: bool = False
    ) -> None:
        self.world = world
        self.name = name
        self.speed = speed
        self.up = True
        self.life = 0
        self.switches = 0
        profiles = tuple(ProfileInfo(name=each, parallel=size.parallel, memory_bytes=1) for each in models)
        self._status = HostStatus(profiles=profiles, exclusive=exclusive, budget_bytes=None if exclusive else size.room)
        self._load_s = size.load_s
        self._start()

    def _start(self) -> None:
        self.scheduler = Scheduler(_UNLIMITED)
        self.jobs: dict[int, Job] = {}
        self._offers: dict[str, HostOffer] = {}
        self._offers_at = 0.0
        self._due: float | None = None
        self.carry_out(self.scheduler.apply_snapshot(self._status, self.world.now))

    def fail(self) -> dict[int, Job]:
        """It is gone, with everything that waits or runs there, which is returned."""
        self.up, self.life = False, self.life + 1
        jobs, self.jobs = self.jobs, {}
        return jobs

    def come_back(self) -> None:
        self.up = True
        self._start()

    def offer(self, model: str) -> HostOffer:
        """Asked anew after each change, and each time that gateways look."""
        if self.world.now - self._offers_at >= LOOK_S:
            self._offers, self._offers_at = {}, self.world.now
        if model not in self._offers:
            self._offers[model] = self.scheduler.offer(model, 0, self.world.now)
        return self._offers[model]

    def ask(self, job: Job, number: int) -> None:
        self.jobs[number] = job
        job.tickets[self.name] = number
        ticket = Ticket(id=number, model=job.model, at=self.world.now, client=str(job.client))
        self.carry_out(self.scheduler.request(ticket, self.world.now))

    def cancel(self, number: int) -> None:
        if self.jobs.pop(number, None) is not None:
            self.carry_out(self.scheduler.cancel(number, self.world.now))

    def finish(self, number: int, job: Job, seconds: float, keep_alive_s: float | None) -> None:
        del self.jobs[number]
        usage = Usage(completion_tokens=round(job.tokens), completion_ms=seconds * 1000)
        self.scheduler.answered(number, usage, self.world.now)
        self.carry_out(self.scheduler.release(number, self.world.now, keep_alive_s))

    def carry_out(self, decisions: list[Decision]) -> None:
        self._offers = {}
        for decision in decisions:
            if isinstance(decision, Grant):
                self.world.granted(self, decision.ticket)
            elif isinstance(decision, Refuse):
                self.world.refused(self, decision.ticket)
            elif isinstance(decision, StartSwitch):
                self.switches += 1
                takes_s = self._load_s + (STOP_S if decision.evict else 0.0)
                self._later(takes_s, partial(self._loaded, decision))
            elif isinstance(decision, Unload):
                self._later(STOP_S, partial(self._unloaded, decision))
        due = self.scheduler.next_deadline()
        if due is not None and (self._due is None or due < self._due):
            self._due = due
            self._later(max(0.0, due - self.world.now), self._tick)

    def _loaded(self, order: StartSwitch) -> list[Decision]:
        return self.scheduler.loaded(order.id, order.model, self.world.now)

    def _unloaded(self, order: Unload) -> list[Decision]:
        return self.scheduler.unloaded(order.model, self.world.now)

    def _tick(self) -> list[Decision]:
        self._due = None
        return self.scheduler.tick(self.world.now)

    def _later(self, seconds: float, then: Callable[[], list[Decision]]) -> None:
        life = self.life

        def run() -> None:
            if self.life == life:
                self.carry_out(then())

        self.world.after(seconds, run)


class World:
    """All hosts and the gateways before them, which decide alike and so count as one. Without `ranked` each request goes to
    its first host, as the chain alone would have it."""

    def __init__(self, size: Size, *, exclusive: bool = False, ranked: bool = True) -> None:
        self.now = 0.0
        self._ranked = ranked
        self.size = size
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count(1)
        self.random = random.Random(size.seed)
        self.waiting: dict[str, dict[int, Job]] = {}
        self.done: list[tuple[Job, float, float]] = []
        self.repeated = 0
        self.decided_s, self.decisions = 0.0, 0
        self.left = 0
        self.next_of: Callable[[Job], None] = lambda job: None
        names = [f"m{number}" for number in range(size.models)]
        allowed: dict[str, list[str]] = {}
        host_names = [f"h{number}" for number in range(size.hosts)]
        for name in names:
            allowed[name] = sorted(self.random.sample(host_names, min(size.spread, size.hosts)))
        self.allowed = allowed
        self.hosts: dict[str, SimulatedHost] = {}
        for position, name in enumerate(host_names):
            speed = 1.0 + (size.fastest - 1.0) * position / max(1, size.hosts - 1)
            models = [each for each in names if name in allowed[each]]
            self.hosts[name] = SimulatedHost(self, name, speed, models, size, exclusive=exclusive)

    def after(self, seconds: float, then: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), then))

    def submit(self, job: Job) -> None:
        """A gateway places a request."""
        began = time.process_time()
        offers = self._offers(job)
        first = next((name for name, offer in offers.items() if offer.available), None)
        if self._ranked and (ranked := rank(offers, replica_wait_s=REPLICA_WAIT_S)):
            first = ranked[0].backend if offers[ranked[0].backend].available else None
        self.decided_s += time.process_time() - began
        self.decisions += 1
        if first is None:
            self.after(AGAIN_S, partial(self.submit, job))
            return
        job.first = job.first or first
        self.waiting.setdefault(job.model, {})[id(job)] = job
        self.hosts[first].ask(job, next(self._numbers))

    def _offers(self, job: Job) -> dict[str, HostOffer]:
        return {name: self.hosts[name].offer(job.model) for name in self.allowed[job.model] if self.hosts[name].up}

    def granted(self, host: SimulatedHost, number: int) -> None:
        job = host.jobs[number]
        if job.host is not None:  # both of its tickets were granted before one was withdrawn
            self.after(0.0, partial(host.cancel, number))
            return
        job.host = host.name
        self.waiting.get(job.model, {}).pop(id(job), None)
        others = [(name, each) for name, each in job.tickets.items() if name != host.name]
        job.tickets = {host.name: number}
        seconds = job.tokens / (self.size.tokens_per_s * host.speed)
        keep_alive_s = REPLICA_IDLE_S if is_replica(host.name, self._offers(job)) else None
        life, began = host.life, self.now

        def end() -> None:
            if host.life != life:
                return
            host.finish(number, job, seconds, keep_alive_s)
            self.done.append((job, began, self.now))
            self.left -= 1
            self.next_of(job)

        self.after(seconds, end)
        for name, each in others:
            # Not within the other host's decision.
            self.after(0.0, partial(self.hosts[name].cancel, each))

    def refused(self, host: SimulatedHost, number: int) -> None:
        job = host.jobs.pop(number)
        job.tickets.pop(host.name, None)
        if not job.tickets:
            self.after(AGAIN_S, partial(self.submit, job))

    def fail(self, host: SimulatedHost) -> None:
        """A host fails: what waits and what is being answered there goes elsewhere."""
        for number, job in host.fail().items():
            if job.tickets.get(host.name) != number:
                continue  # it was about to be withdrawn
            del job.tickets[host.name]
            if job.host == host.name:
                self.repeated, job.host = self.repeated + 1, None
            if not job.tickets:
                self.submit(job)
        self.after(self.size.down_s, host.come_back)

    def look(self) -> None:
        """As `LeaseMoves.look`."""
        for jobs in list(self.waiting.values()):
            loads = any(len(job.tickets) > 1 for job in jobs.values())
            for job in list(jobs.values())[:LOOKED_AT]:
                if len(job.tickets) == 1 and job.host is None:
                    loads = self._look_for(job, may_load=not loads) or loads
        self.after(LOOK_S, self.look)

    def _look_for(self, job: Job, *, may_load: bool) -> bool:
        ((name, number),) = job.tickets.items()
        host, offers = self.hosts[name], self._offers(job)
        if not host.scheduler.is_waiting(number):
            return False
        measured = host.scheduler.is_measured(job.model, self.now, number)
        own = offers.pop(name)
        chosen = better_host(
            own, offers, waited_s=self.now - job.at, may_load=may_load, replica_wait_s=REPLICA_WAIT_S,
            rest_s=host.scheduler.estimate_s(job.model, self.now, number) if measured else None,
        )  # fmt: skip
        if chosen is None:
            return False
        self.hosts[chosen].ask(job, next(self._numbers))
        return True

    def run(self) -> None:
        """Until all requests are answered."""
        if self._ranked:
            self.after(LOOK_S, self.look)
        while self.left:
            self.now, _, then = heapq.heappop(self._events)
            then()

    def result(self) -> Result:
        shares: dict[int, list[float]] = {}
        waits: list[float] = []
        for job, began, ended in self.done:
            shares.setdefault(job.client, []).append((ended - began) / max(1e-9, ended - job.at))
            waits.append(began - job.at)
        each = [statistics.fmean(of_client) for of_client in shares.values()]
        slots = self.size.parallel * max(1, self.size.room)
        capacity = sum(host.speed for host in self.hosts.values()) * self.size.tokens_per_s * slots
        return Result(
            makespan_s=round(max(ended for _, _, ended in self.done), 1),
            bound_s=round(sum(job.tokens for job, _, _ in self.done) / capacity, 1),
            jain=round(sum(each) ** 2 / (len(each) * sum(share * share for share in each)), 3),
            switches=sum(host.switches for host in self.hosts.values()),
            answers=len(self.done),
            repeated=self.repeated,
            moved=sum(job.host != job.first for job, _, _ in self.done),
            mean_wait_s=round(statistics.fmean(waits), 2),
            worst_wait_s=round(max(waits), 1),
            decision_us=round(self.decided_s / max(1, self.decisions) * 1e6, 1),
        )


def simulate(size: Size, *, ranked: bool = True) -> Result:
    """Clients that choose models by Zipf's law, and send their next request some time after each answer."""
    world = World(size, ranked=ranked)
    weights = [1.0 / (place + 1) for place in range(size.models)]
    names = list(world.allowed)
    sent = dict.fromkeys(range(size.clients), 0)

    def send(client: int) -> None:
        sent[client] += 1
        (model,) = world.random.choices(names, weights)
        tokens = min(2000.0, 16.0 + world.random.expovariate(1.0 / size.tokens))
        world.submit(Job(client=client, model=model, tokens=tokens, at=world.now, tickets={}))

    def next_of(job: Job) -> None:
        if sent[job.client] < size.requests:
            world.after(world.random.expovariate(1.0 / size.think_s), partial(send, job.client))

    world.next_of = next_of
    world.left = size.clients * size.requests
    for client in range(size.clients):
        world.after(world.random.uniform(0.0, size.think_s), partial(send, client))
    for host in world.random.sample(list(world.hosts.values()), min(size.failures, size.hosts)):
        world.after(world.random.uniform(0.0, 2 * size.think_s), partial(world.fail, host))
    world.run()
    return world.result()


def against_the_optimum(seed: int, *, jobs: int = 7) -> tuple[float, float]:
    """Makespans of a small instance: as placed, and the best of all assignments of requests to hosts in any order.

    Two hosts of different speed hold one of three models at a time; all requests come at once.
    """
    size = Size(hosts=2, models=3, spread=2, room=0, parallel=1, load_s=4.0, fastest=2.0, seed=seed)
    world = World(size, exclusive=True)
    tokens = [float(world.random.randrange(40, 600)) for _ in range(jobs)]
    models = [f"m{world.random.randrange(3)}" for _ in range(jobs)]
    world.left = jobs
    for client in range(jobs):
        job = Job(client=client, model=models[client], tokens=tokens[client], at=0.0, tickets={})
        world.after(0.0, partial(world.submit, job))
    world.run()
    best = float("inf")
    for assignment in itertools.product(world.hosts.values(), repeat=jobs):
        ends = []
        for host in world.hosts.values():
            own = [number for number in range(jobs) if assignment[number] is host]
            loads = len({models[number] for number in own})
            work_s = sum(tokens[number] for number in own) / (size.tokens_per_s * host.speed)
            # The requests of each model together: no order has fewer loads.
            ends.append(work_s + loads * size.load_s + max(0, loads - 1) * STOP_S)
        best = min(best, max(ends))
    return max(ended for _, _, ended in world.done), best


def main(size: Size) -> None:
    """Print what was simulated, beside the chain's order alone."""
    began = time.process_time()
    placed, chained = simulate(size), simulate(size, ranked=False)
    print(
        f"{size.hosts} hosts, {size.models} models, {size.clients} clients: {time.process_time() - began:.1f} s of CPU"
    )
    print(f"  {'':14} {'placed':>12} {'chain alone':>12}")
    for name in placed.__struct_fields__:
        print(f"  {name:14} {getattr(placed, name):12} {getattr(chained, name):12}")
    ratios = [placed / best for placed, best in map(against_the_optimum, range(100))]
    print(
        f"makespan / optimum, 100 small instances: mean {statistics.fmean(ratios):.2f}, "
        f"median {statistics.median(ratios):.2f}, worst {max(ratios):.2f}"
    )
