"""Along the chain: one hop after the other, until one answers. After the first word nobody else may."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

import anyio
import msgspec

from hostler.adapters.errors import (
    BackendRejected,
    BackendUnavailable,
    BadRequest,
    Cancelled,
    ClientGone,
    GatewayError,
    ModelUnavailable,
    Stopping,
    Waited,
)
from hostler.adapters.types import ChatRequest, CompletionRequest, Control, Phase, Progress
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.backends.chain import Hop
from hostler.gateway.backends.chain_errors import Passed, failure, presentable, reason
from hostler.gateway.backends.circuit_breaker import Pass
from hostler.gateway.backends.failure_policy import (
    VERDICTS,
    WORDS,
    Outcome,
    Skip,
    fault_of,
    outcome_of,
    says_retryable,
    tokens_at_least,
)
from hostler.gateway.backends.retry_budget import RetryBudget
from hostler.gateway.config import SwitchingSettings
from hostler.gateway.context import NO_MORE, Attempt, Exchange, Target
from hostler.gateway.events import printable
from hostler.gateway.middleware.base import CallNext, Layer


class Pauses:
    """The pauses that requests make on their way along the chain: for a machine to wake, a model to load, a limit to pass."""

    def __init__(self) -> None:
        self._scopes: set[anyio.CancelScope] = set()
        self._stopping = False

    def stop(self) -> None:
        """End all of them, and let nobody begin another one."""
        self._stopping = True
        for scope in self._scopes:
            scope.cancel()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """A pause, as long as the context lasts. Raises `Stopping` if the gateway stops meanwhile, or is about to."""
        if self._stopping:
            raise Stopping(NO_MORE)
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            raise Stopping(NO_MORE)


logger = logging.getLogger(__name__)

#: As many backends are asked for one request at most; those that are passed over do not count.
MAX_HOPS = 3
#: A `Retry-After` up to this is waited for, in seconds; a longer one belongs to the next hop.
SHORT_WAIT_S = 3.0
#: How often a backend that is loading is asked whether it is ready, in seconds.
_ASK_LOADING_S = 0.5


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that did not answer."""

    outcome: Outcome
    error: GatewayError


class Fallback(Layer):
    """Asks the candidates in order, as the table of outcomes says, and tells the breakers how each attempt went."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hops: Mapping[str, Hop],
        budget: RetryBudget,
        pauses: Pauses,
        settings: SwitchingSettings,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(app)
        self._hops = hops
        self._budget = budget
        self._pauses = pauses
        self._settings = settings
        self._clock = clock

    async def dispatch(self, exchange: Exchange, call_next: CallNext) -> None:
        if not exchange.candidates:
            raise ModelUnavailable(f"no backend of the chain can run {exchange.model}", model=exchange.model)
        self._budget.request(self._clock())
        walk: list[Passed] = []
        for number, target in enumerate(exchange.candidates):
            hop, later = self._hops[target.backend], exchange.candidates[number + 1 :]
            passed = self._passed_over(exchange, hop, target, later, walk)
            if passed is None:
                _enter(exchange, number, target, walk)
                passed = await self._ask(exchange, hop, target, later, call_next)
                if passed is None:
                    return
            walk.append(passed)
        for number, target in enumerate(exchange.candidates):
            # The others took their time: whoever rested when it was their turn may be back.
            hop = self._hops[target.backend]
            rested = any(each.hop is hop and each.why == "resting" for each in walk)
            if rested and self._passed_over(exchange, hop, target, (), walk) is None:
                walk = [each for each in walk if each.hop is not hop]
                _enter(exchange, number, target, walk)
                passed = await self._ask(exchange, hop, target, (), call_next)
                if passed is None:
                    return
                walk.append(passed)
        exchange.reason = reason(walk)
        exchange.passed = tuple((each.hop.name, each.why) for each in walk)
        raise failure(exchange.model, walk)

    def _passed_over(
        self, exchange: Exchange, hop: Hop, target: Target, later: tuple[Target, ...], walk: list[Passed]
    ) -> Passed | None:
        """A hop that is not even asked, if it is not."""
        skip = self._skip(exchange, hop, target, later, walk)
        if skip is None:
            return None
        return Passed(hop=hop, why=skip, retry_after_s=self._retry_in(hop, target, skip))

    def _skip(
        self, exchange: Exchange, hop: Hop, target: Target, later: tuple[Target, ...], walk: list[Passed]
    ) -> Skip | None:
        """Why this hop is not even asked, if it is not."""
        if exchange.only is not None and target.backend != exchange.only:
            return "not_asked_for"
        if exchange.local_only and not hop.local:
            return "outside"
        if not hop.local and hop.spending is not None and hop.spending.reached:
            return "spent"
        if exchange.only is not None or isinstance(exchange.request, Control):
            return None
        if _too_long(exchange, target, later):
            return "too_long"
        if len(walk) >= MAX_HOPS and sum(each.error is not None for each in walk) >= MAX_HOPS:
            return "enough_tried"
        if not hop.standing.allows(target.name_there, self._clock()):
            return "resting"
        return None

    def _retry_in(self, hop: Hop, target: Target, skip: Skip) -> float | None:
        if skip == "spent" and hop.spending is not None:
            return hop.spending.resumes_in()
        if skip == "resting":
            return max(0.1, hop.standing.retry_in(target.name_there, self._clock()))
        return None

    async def _ask(
        self,
        exchange: Exchange,
        hop: Hop,
        target: Target,
        later: tuple[Target, ...],
        call_next: CallNext,
    ) -> Passed | None:
        """Ask one hop, again if the table says so. `None` if it answered; raises what no other hop may mend."""
        retried = len(exchange.attempts) > 1 and _retries(exchange) > 0
        while True:
            # An order is no call to a model; and whoever names the backend on purpose may ask a closed one.
            order = isinstance(exchange.request, Control)
            permit = None if order else hop.standing.acquire(target.name_there, self._clock())
            failed = await self._attempt(exchange, hop, target, permit, call_next)
            if failed is None:
                return None
            error, verdict = failed.error, VERDICTS[failed.outcome]
            if exchange.reply.committed or verdict.onward == "never":
                raise presentable(error, hop)
            again_in = self._again_in(exchange, failed, hop, target, retried)
            if again_in is not None:
                retried = retried or verdict.again != "wait"
                await self._pause(exchange, again_in, "loading" if verdict.again == "wait" else "fallback")
                if hop.standing.allows(target.name_there, self._clock()):
                    continue
            if verdict.onward == "if_other" and not _another_may(error, target, later):
                raise presentable(error, hop)
            after = error.retry_after_s
            if after is None:
                after = hop.standing.retry_in(target.name_there, self._clock()) or None
            why: Outcome | Skip = "cannot" if isinstance(error, BadRequest) else failed.outcome
            return Passed(hop=hop, why=why, error=error, retry_after_s=after)

    async def _attempt(
        self, exchange: Exchange, hop: Hop, target: Target, permit: Pass | None, call_next: CallNext
    ) -> Failed | None:
        """One try. However it ends, the breakers are told, once."""
        held = permit
        began_at, queued_s, switched_s = self._clock(), exchange.queue_s, exchange.switch_s
        outcome: Outcome = "client_left"
        word: str = "gateway_failed"
        error: GatewayError | None = None

        def answering() -> None:
            nonlocal held
            if held is not None:
                held = hop.standing.began(held, self._clock())

        exchange.answering, exchange.first_word_at, exchange.heard = answering, None, 0
        exchange.usage = exchange.finish = None
        if hop.pulse is not None:
            hop.pulse.enter(exchange)
        try:
            if hop.waker is not None and not hop.reachable():
                await self._wake(exchange, hop, target)
            await call_next()
            outcome = word = "answered"
            return None
        except asyncio.CancelledError:
            word = _ended_by(exchange.ending)
            raise
        except GatewayError as caught:
            error, word = caught, _ended_by(caught)
            judged = outcome_of(caught, committed=exchange.reply.committed)
            if judged is None:
                if not isinstance(caught, BadRequest) or exchange.reply.committed:
                    raise
                judged = "rejected"  # this backend's protocol has no words for the request; another one's may
            outcome = word = judged
            return Failed(outcome=judged, error=caught)
        finally:
            exchange.answering = None
            if hop.pulse is not None:
                hop.pulse.leave(exchange)
            exchange.attempts.append(
                Attempt(
                    target=target,
                    seconds=self._clock() - began_at,
                    outcome=word,
                    began_at=began_at,
                    queue_s=exchange.queue_s - queued_s,
                    switch_s=exchange.switch_s - switched_s,
                )
            )
            self._tell(exchange, hop, target, held, outcome, error)
            self._record_cost(exchange, hop, target, outcome)

    def _tell(
        self,
        exchange: Exchange,
        hop: Hop,
        target: Target,
        held: Pass | None,
        outcome: Outcome,
        error: GatewayError | None,
    ) -> None:
        """The breakers, the background and people hear how the attempt went."""
        if held is not None:
            after = error.retry_after_s if error is not None else None
            down = outcome == "unreachable" and not hop.reachable()
            hop.standing.report(held, outcome, self._clock(), retry_after_s=after, down=down)
        elif outcome == "answered" and exchange.only is not None:
            hop.standing.mended(target.name_there)
        if outcome in ("unreachable", "connect_timeout"):
            hop.suspect()
        if error is None:
            return
        said = error.body[:300] if isinstance(error, BackendRejected) else error.message
        if isinstance(said, bytes):
            said = said.decode("utf-8", "replace")
        told = (exchange.id, hop.name, WORDS[outcome], printable(said))
        if VERDICTS[outcome].alert:
            logger.error("%s: %s %s, and is left alone for a while; look after its key and account: %s", *told)
        else:
            logger.info("%s: %s %s: %s", *told)

    def _record_cost(self, exchange: Exchange, hop: Hop, target: Target, outcome: Outcome) -> None:
        usage, answered = exchange.usage, outcome == "answered" or exchange.first_word_at is not None
        cost = usage.cost if usage is not None else None
        price = hop.price(target.model, target.name_there) if cost is None and hop.prices else None
        if price is not None and usage is not None:
            cost = price.cost(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        elif price is not None and answered:
            # Nobody asked for the figures: about four bytes are a token, and about one piece of an answer.
            cost = price.cost(len(exchange.request.origin.body) // 4, 0, exchange.heard)
        if cost is not None:
            exchange.cost = (exchange.cost or 0.0) + cost
        if (cost is not None or answered) and not hop.local and hop.spending is not None:
            hop.spending.add(hop.name, cost)

    def _again_in(self, exchange: Exchange, failed: Failed, hop: Hop, target: Target, retried: bool) -> float | None:
        """In how many seconds the same hop is to be asked again; `None` if it is not."""
        now = self._clock()
        if says_retryable(failed.error) is False:
            return None
        match VERDICTS[failed.outcome].again:
            case "wait":
                left = (exchange.deadline or now) - now
                return None if isinstance(failed.error, Waited) or left <= 0 else min(_ASK_LOADING_S, left)
            case "if_short":
                after = failed.error.retry_after_s
                if retried or after is None or after > SHORT_WAIT_S or not self._budget.spend(now):
                    return None
                return max(after, hop.standing.retry_in(target.name_there, now)) + 0.005
            case "budget":
                return 0.0 if not retried and self._budget.spend(now) else None
        return None

    async def _wake(self, exchange: Exchange, hop: Hop, target: Target) -> None:
        """Call the machine and wait for it, together with everybody else who does."""
        assert hop.waker is not None
        until = hop.waker.call()
        if until is None:
            raise BackendUnavailable(f"{hop.name} sleeps, and was called in vain a moment ago", backend=hop.name)
        if exchange.deadline is not None:
            until = min(until, exchange.deadline)
        if not await self._shown(exchange, until, "waking", hop.waker.wait):
            raise BackendUnavailable(f"{hop.name} sleeps, and did not wake up in time", backend=hop.name)

    async def _pause(self, exchange: Exchange, seconds: float, phase: Phase) -> None:
        async def sleep(for_s: float) -> bool:
            await anyio.sleep(max(0.0, for_s))
            return False

        if seconds > 0:
            await self._shown(exchange, self._clock() + seconds, phase, sleep)

    async def _shown(
        self, exchange: Exchange, until: float, phase: Phase, wait: Callable[[float], Awaitable[bool]]
    ) -> bool:
        """Wait for something, at most until then, and show streaming clients that it is waited for.

        Raises `Stopping` if the gateway stops meanwhile.
        """
        settings, now = self._settings, self._clock()
        began_at = now
        shows = exchange.reply.patient and settings.progress != "off"
        due = max(now, exchange.started_at + settings.progress_after_s) if shows else float("inf")
        while True:
            with self._pauses.entered():
                if await wait(min(due, until) - now):
                    return True
            now = self._clock()
            if now >= until:
                return False
            if now >= due:
                model = exchange.model or ""
                eta_s = until - now if phase == "waking" else None
                await exchange.reply.heartbeat(Progress(phase=phase, model=model, eta_s=eta_s, waited_s=now - began_at))
                now = self._clock()
                due = now + settings.progress_every_s


def _enter(exchange: Exchange, number: int, target: Target, walk: list[Passed]) -> None:
    """This hop is the one that is asked now, after those in `walk`."""
    exchange.hop, exchange.target, exchange.address = number, target, None
    if walk:
        exchange.reason = reason(walk)
        exchange.passed = tuple((each.hop.name, each.why) for each in walk)


def _too_long(exchange: Exchange, target: Target, later: tuple[Target, ...]) -> bool:
    """Whether the prompt cannot fit here, and somebody else may have room: else the engine says by how much."""
    request = exchange.request
    if not (target.context and later) or not isinstance(request, (ChatRequest, CompletionRequest)):
        return False
    roomier = any(not other.context or other.context > target.context for other in later)
    return roomier and tokens_at_least(request.origin.body) > target.context


def _ended_by(ending: GatewayError | None) -> str:
    """What ended an attempt that is nobody's failure. Without a reason it is cut off by the end of the gateway."""
    if ending is None or isinstance(ending, Stopping):
        return "stopped"
    return (
        "cancelled"
        if isinstance(ending, Cancelled)
        else "client_left"
        if isinstance(ending, ClientGone)
        else ending.code
    )


def _retries(exchange: Exchange) -> int:
    """How often the same target was asked again, waiting for one that loads aside."""
    count = 0
    for before, after in zip(exchange.attempts, exchange.attempts[1:], strict=False):
        count += before.target == after.target and before.outcome != "loading"
    return count


def _another_may(error: GatewayError, target: Target, later: tuple[Target, ...]) -> bool:
    """Whether a later hop may take what this one rejected."""
    if isinstance(error, BadRequest):
        return True
    match fault_of(error):
        case "context":
            return any(not other.context or other.context > target.context for other in later)
        case "model" | "contents":
            return bool(later)
    return False
