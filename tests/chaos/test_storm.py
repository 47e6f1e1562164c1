"""Requests in a storm of failing backends, kills, stops, freezes, full disks, wrong clocks and saved mistakes.

Nothing is lost, cut, duplicated or mixed up, no program logs a traceback, and no process is left. `HOSTLER_STORM` is the number of
requests, `HOSTLER_STORM_SEED` gives chance the same start, `HOSTLER_STORM_FAULTS` names the kinds of faults,
`HOSTLER_STORM_GATEWAYS` is the number of gateways.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import anyio
import httpx
import pytest
from chaos.storm import ALL_FAULTS, Storm
from chaos.world import start_world, until_used

REQUESTS = int(os.environ.get("HOSTLER_STORM", "150"))
SEED = int(os.environ.get("HOSTLER_STORM_SEED", "0")) or random.randrange(1, 10**6)
GATEWAYS = int(os.environ.get("HOSTLER_STORM_GATEWAYS", "1"))
AT_ONCE = 12

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120 + REQUESTS * 2)]


def kinds() -> tuple[str, ...]:
    """The kinds of faults of this storm."""
    named = os.environ.get("HOSTLER_STORM_FAULTS", "")
    chosen = tuple(named.split(",")) if named else ALL_FAULTS
    assert set(chosen) <= set(ALL_FAULTS), f"kinds of faults are: {', '.join(ALL_FAULTS)}"
    return chosen


async def test_every_request_in_the_storm_has_one_true_outcome(tmp_path: Path) -> None:
    print(f"HOSTLER_STORM={REQUESTS} HOSTLER_STORM_SEED={SEED} HOSTLER_STORM_FAULTS={','.join(kinds())}")
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=20)
    async with httpx.AsyncClient(limits=limits, trust_env=False) as http:
        async with start_world(tmp_path, SEED, gateways=GATEWAYS) as world:
            storm = Storm(world, http, requests=REQUESTS, at_once=AT_ONCE, kinds=kinds(), seed=SEED)
            try:
                await storm.run()
            finally:
                verdicts = Counter(outcome.verdict for outcome in storm.outcomes)
                print(dict(verdicts), dict(Counter(outcome.tries for outcome in storm.outcomes)), dict(storm.actions))
                times = {each.name: (each.longest_start_s, each.longest_stop_s) for each in world.programs}
                print(f"longest start and stop in seconds: {times}")
            assert sorted(outcome.request.name for outcome in storm.outcomes) == [f"r{n:06}" for n in range(REQUESTS)]
            assert verdicts["complete"] > REQUESTS / 2
            # Every machine is used again once all is well.
            for machine in world.machines:
                others = [each for each in world.machines if each is not machine]
                for other in others:
                    await other.stop()
                await until_used(world, http, machine.name, random.Random(SEED))
                for other in others:
                    await other.start()
        # An engine may take its grace period.
        with anyio.fail_after(10):
            while world.left():  # noqa: ASYNC110 - they are no children of this process
                await anyio.sleep(0.05)
        assert world.tracebacks() == []
