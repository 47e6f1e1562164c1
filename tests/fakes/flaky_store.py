"""A gateway's connection to a store that fails before or after the store has done what it was asked, and loses messages."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import Redis

from hostler.gateway.cluster.ledger import Ledger
from hostler.gateway.cluster.store import REQUEST_LIMIT_S, Store, StoreAway
from hostler.gateway.cluster_settings import store_address


class FlakyStore(Store):
    """So many of its commands and messages get lost, and all of them while it `is_cut`."""

    def __init__(self, url: str, chance: random.Random, *, losses: float = 0.0) -> None:
        super().__init__(store_address(url), name="home", scripts=Ledger.scripts, clock=time.monotonic, wall=time.time)
        self._random = chance
        self._losses = losses
        self.is_cut = False

    def _loses(self) -> bool:
        return self.is_cut or self._random.random() < self._losses

    def subscribe(self, channel: str, listener: Callable[[bytes], None]) -> None:
        def listen(message: bytes) -> None:
            if not self._loses():
                listener(message)

        super().subscribe(channel, listen)

    async def execute(
        self,
        *words: str | bytes | int | float,
        limit_s: float = REQUEST_LIMIT_S,
        types: Sequence[tuple[str, str]] = (),
    ) -> Any:
        if not self.connected or not self._loses():
            return await super().execute(*words, limit_s=limit_s, types=types)
        if self._random.random() < 0.5:
            await super().execute(*words, limit_s=limit_s, types=types)
        self._fail("lost on the way")
        raise StoreAway

    async def _prove(self, client: Redis) -> None:
        if self.is_cut:
            raise TimeoutError("cut")
        await super()._prove(client)
