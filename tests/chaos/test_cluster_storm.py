"""Requests to three gateways before four hosts with a common store, while all of them die, freeze and lose each other.

Nothing is lost, cut, answered twice or mixed up; a host never runs two engines, nor more requests than slots; limits of
keys hold. `HOSTLER_CLUSTER_STORM` is the number of requests, `HOSTLER_STORM_SEED` gives chance the same start.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import anyio
import httpx
import pytest
from chaos.cluster_judge import (
    answered_twice,
    broken_for_nothing,
    crowded_engines,
    most_in_a_minute,
    overlapping_engines,
    read_log,
    unworked,
    used_tokens,
    work_of,
)
from chaos.cluster_storm import ClusterStorm
from chaos.cluster_world import GATEWAYS, HOSTS, LIMITED_TOKENS, METERED, PACED, start_cluster
from fakes.redis_server import needs_redis

from hostler.gateway.context import KeyRules

REQUESTS = int(os.environ.get("HOSTLER_CLUSTER_STORM", "300"))
SEED = int(os.environ.get("HOSTLER_STORM_SEED", "0")) or random.randrange(1, 10**6)
#: Less than the keys would use.
TOKENS, PER_MINUTE = REQUESTS // 24 * LIMITED_TOKENS, 20
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300 + REQUESTS), needs_redis]


async def test_every_request_to_the_cluster_in_the_storm_has_one_true_answer(tmp_path: Path) -> None:
    print(f"HOSTLER_CLUSTER_STORM={REQUESTS} HOSTLER_STORM_SEED={SEED}")
    rules = {METERED: KeyRules(tokens_per_day=TOKENS), PACED: KeyRules(requests_per_minute=PER_MINUTE)}
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=20)
    async with httpx.AsyncClient(limits=limits, trust_env=False) as http:
        async with start_cluster(tmp_path, rules) as world:
            await world.until_well(http)
            storm = ClusterStorm(world, http, requests=REQUESTS, seed=SEED)
            try:
                await storm.run()
            finally:
                print(dict(Counter(each.verdict for each in storm.tries)), dict(storm.actions))
            await world.until_well(http)
        # An engine may take its grace period.
        with anyio.fail_after(10):
            while world.left():  # noqa: ASYNC110 - they are no children of this process
                await anyio.sleep(0.05)
        logs = {host: read_log(world.log(host)) for host in HOSTS}
        work = work_of(logs)
        minute = most_in_a_minute(storm.tries, work)
        print(f"tokens {used_tokens(storm.tries)} of {TOKENS}, requests per minute {minute} of {PER_MINUTE}")
        assert sorted(storm.answered) == [f"r{number:06}" for number in range(REQUESTS)]
        # All at once: the first mistake must not hide the others.
        found = {
            "overlapping engines": overlapping_engines(logs),
            "crowded engines": crowded_engines(logs),
            "unworked": unworked(storm.tries, work),
            "answered twice": answered_twice(world, storm.tries, work),
            "broken for nothing": broken_for_nothing(world, storm.tries),
            "tracebacks": world.tracebacks(),
        }
        if any(found.values()):
            print(*world.disturbances, sep="\n")
        assert {name: each for name, each in found.items() if each} == {}
        # One request of each gateway, since all of them lose the store. The last of all may use more tokens than are left.
        assert used_tokens(storm.tries) < TOKENS + (1 + len(GATEWAYS)) * LIMITED_TOKENS
        assert minute <= PER_MINUTE + len(GATEWAYS)
