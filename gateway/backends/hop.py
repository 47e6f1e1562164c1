"""A backend as a hop of the chain: what is thought of it, and what it takes to use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from hostler.gateway.backends.pulse import Pulse
from hostler.gateway.backends.spending import Spending
from hostler.gateway.backends.standing import Standing
from hostler.gateway.backends.waking import Waker
from hostler.gateway.settings import PriceSettings


def _always() -> bool:
    return True


def _nothing() -> None:
    return None


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """One backend. `local`: what is sent there stays in the house; else `spending` counts what it costs.

    `supervised`: engines of ours answer, so that errors are ours to explain. `reachable` tells whether it is there as
    far as the background knows; `suspect` asks the background to look at once; `pulse` watches over the requests there.
    """

    name: str
    standing: Standing
    local: bool = True
    supervised: bool = False
    reachable: Callable[[], bool] = _always
    suspect: Callable[[], None] = _nothing
    pulse: Pulse | None = None
    waker: Waker | None = None
    spending: Spending | None = None
    prices: Mapping[str, PriceSettings] = {}

    def price(self, model: str, name_there: str) -> PriceSettings | None:
        """What a model costs here, if the configuration says so."""
        return self.prices.get(name_there) or self.prices.get(model) or self.prices.get("*")
