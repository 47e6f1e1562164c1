"""Gateways' shares in a cluster without the gateways: a connection, a ledger, and the budgets that it adds."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from fakes.store_client import make_store, running, until

from hostler.gateway.cluster.key_budgets import SharedKeyUsage
from hostler.gateway.cluster.ledger import Ledger
from hostler.gateway.cluster.spending import SharedSpending
from hostler.gateway.cluster.store import Store
from hostler.gateway.context import KeyRules
from hostler.gateway.key_usage import KeyReservation


class BudgetGateway:
    """What one gateway knows of budgets. Its files are in `folder`, so that another one there is the same gateway again."""

    def __init__(
        self,
        url: str,
        folder: Path,
        name: str,
        *,
        limit: float | None = None,
        skew_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        store: Store | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.store = make_store(url, Ledger.scripts) if store is None else store
        wall = lambda: time.time() + skew_s  # noqa: E731
        # A busy machine must not look like a slow store.
        self.ledger = Ledger(self.store, name, file=folder / f"{name}-ledger.json", clock=clock, wall=wall, limit_s=0.5)
        self.spending = SharedSpending(folder / f"{name}-spending.json", limit, self.ledger)
        self.keys = SharedKeyUsage(folder / f"{name}-keys.json", self.ledger, has_daily_limit=limit is not None)

    async def admit(self, rules: KeyRules, *, key: str = "bob", dollars: float = 0.0) -> KeyReservation | None:
        """What is reserved for a request; `None` if it is refused."""
        admission = await self.keys.admit(key, rules, prompt_tokens=0, dollars=dollars, has_local=False)
        return admission.reservation

    def settle(self, reservation: KeyReservation, tokens: int = 0, dollars: float = 0.0) -> None:
        self.keys.settle(reservation, prompt_tokens=0, answer_tokens=tokens, dollars=dollars)

    async def use(self, rules: KeyRules, tokens: int = 0, *, dollars: float = 0.0) -> bool:
        """One request that uses exactly this."""
        reservation = await self.admit(rules, dollars=dollars)
        if reservation is not None:
            self.settle(reservation, tokens, dollars)
        return reservation is not None

    def known_tokens(self) -> int:
        """The tokens that all gateways have used today."""
        figures = self.keys.figures().get("bob")
        return 0 if figures is None else figures.tokens

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with running(self.store.run), running(self.ledger.run):
            yield

    async def killed(self, scope: anyio.CancelScope) -> None:
        """End it without another word, to the store or to its files."""
        self.ledger._keep = lambda *, now=False: None  # type: ignore[method-assign]
        self.store.state = type(self.store.state)(connected=False, reason="killed", since=0)
        scope.cancel()


@asynccontextmanager
async def budget_gateways(
    url: str, folder: Path, count: int = 3, *, limit: float | None = None
) -> AsyncIterator[list[BudgetGateway]]:
    """Run gateways that know of each other."""
    gateways = [BudgetGateway(url, folder, f"gateway{number}", limit=limit) for number in range(count)]
    async with running(*(each.store.run for each in gateways)), running(*(each.ledger.run for each in gateways)):
        await until(lambda: connected(gateways) and have_equal_parts(gateways))
        yield gateways


async def admitted(gateways: list[BudgetGateway], rules: KeyRules, requests: int, *, dollars: float = 0.0) -> list[int]:
    """How many of so many requests, all at once at all gateways, each one has admitted."""
    counts = [0] * len(gateways)

    async def ask(number: int) -> None:
        if await gateways[number].admit(rules, dollars=dollars) is not None:
            counts[number] += 1

    async with anyio.create_task_group() as tasks:
        for number in range(requests):
            tasks.start_soon(ask, number % len(gateways))
    return counts


def connected(gateways: list[BudgetGateway]) -> bool:
    """Whether the store decides for all of them."""
    return all(each.ledger.connected for each in gateways)


def have_equal_parts(gateways: list[BudgetGateway]) -> bool:
    """Whether all know of each other, and each may use an equal part of new budgets without the store."""
    parts = {round(each.ledger.shares.part * len(gateways), 3) for each in gateways}
    return parts == {1.0} and not any(each.ledger.shares.is_raising for each in gateways)


def shares(gateways: list[BudgetGateway], rules: KeyRules) -> list[tuple[int, ...]]:
    """What each gateway may use without the store, rounded: tokens and cents of the day, requests and tokens of the minute."""
    found = []
    for each in gateways:
        now, books = each.ledger.wall(), each.keys._books("bob", rules)
        (tokens, dollars), minute = (each.ledger.shares.room(book, each.keys.entry(book.name), now) for book in books)
        found.append(tuple(round(share) for share in (tokens, 100 * dollars, *minute)))
    return found


def day_book(gateway: BudgetGateway) -> str:
    """The key of the book of its day, without the prefix."""
    return next(f"budget:{book.name}" for book in gateway.keys.books() if book.name.startswith("day:"))
