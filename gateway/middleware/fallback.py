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
    ClientDisconnected,
    GatewayError,
    ModelUnavailable,
    RequestCancelled,
    ShuttingDown,
    WaitTimeout,
)
from hostler.adapters.types import ChatRequest, CompletionRequest, Control, Progress, ProgressPhase
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
from hostler.gateway.context import NO_MORE, Attempt, RequestContext, Target
from hostler.gateway.events import printable
from hostler.gateway.middleware.base import CallNext, RequestMiddleware


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
        """A pause, as long as the context lasts. Raises `ShuttingDown` if the gateway stops meanwhile, or is about to."""
        if self._stopping:
            raise ShuttingDown(NO_MORE)
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            raise ShuttingDown(NO_MORE)


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


class FallbackMiddleware(RequestMiddleware):
    """Asks the candidates in order, as the table of outcomes says, and tells the breakers how each attempt went."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hops: Mapping[str, Hop],
        budget: RetryBudget,
        pauses: Pauses,
        settings: SwitchingSettings,
        max_wait_s: float,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(app)
        self._hops = hops
        self._budget = budget
        self._pauses = pauses
        self._settings = settings
        self._max_wait_s = max_wait_s
        self._clock = clock

    async def dispatch(self, context: RequestContext, call_next: CallNext) -> None:
        if not context.candidates:
            raise ModelUnavailable(f"no backend of the chain can run {context.model}", model=context.model)
        now = self._clock()
        context.deadline = now + self._max_wait_s
        self._budget.request(now)
        walk: list[Passed] = []
        for number, target in enumerate(context.candidates):
            hop, later = self._hops[target.backend], context.candidates[number + 1 :]
            passed = self._passed_over(context, hop, target, later, walk)
            if passed is None:
                _enter(context, walk)
                passed = await self._ask(context, number, hop, target, later, call_next)
                if passed is None:
                    return
            walk.append(passed)
        for number, target in enumerate(context.candidates):
            # The others took their time: whoever rested when it was their turn may be back.
            hop = self._hops[target.backend]
            rested = any(each.hop is hop and each.why == "circuit_open" for each in walk)
            if rested and self._passed_over(context, hop, target, (), walk) is None:
                walk = [each for each in walk if each.hop is not hop]
                _enter(context, walk)
                passed = await self._ask(context, number, hop, target, (), call_next)
                if passed is None:
                    return
                walk.append(passed)
        context.reason = reason(walk)
        context.failed_hops = tuple((each.hop.name, each.why) for each in walk)
        raise failure(context.model, walk)

    def _passed_over(
        self, context: RequestContext, hop: Hop, target: Target, later: tuple[Target, ...], walk: list[Passed]
    ) -> Passed | None:
        """A hop that is not even asked, if it is not."""
        skip = self._skip(context, hop, target, later, walk)
        if skip is None:
            return None
        return Passed(hop=hop, why=skip, retry_after_s=self._retry_in(hop, target, skip))

    def _skip(
        self, context: RequestContext, hop: Hop, target: Target, later: tuple[Target, ...], walk: list[Passed]
    ) -> Skip | None:
        """Why this hop is not even asked, if it is not."""
        if context.only is not None and target.backend != context.only:
            return "excluded"
        if context.local_only and not hop.local:
            return "non_local"
        if not hop.local and hop.spending is not None and hop.spending.reached:
            return "budget_exhausted"
        if context.only is not None or isinstance(context.request, Control):
            return None
        if _too_long(context, target, later):
            return "too_long"
        if len(walk) >= MAX_HOPS and sum(each.error is not None for each in walk) >= MAX_HOPS:
            return "max_attempts"
        if not hop.standing.allows(target.name_there, self._clock()):
            return "circuit_open"
        return None

    def _retry_in(self, hop: Hop, target: Target, skip: Skip) -> float | None:
        if skip == "budget_exhausted" and hop.spending is not None:
            return hop.spending.resumes_in()
        if skip == "circuit_open":
            return max(0.1, hop.standing.retry_in(target.name_there, self._clock()))
        return None

    async def _ask(
        self,
        context: RequestContext,
        number: int,
        hop: Hop,
        target: Target,
        later: tuple[Target, ...],
        call_next: CallNext,
    ) -> Passed | None:
        """Ask one hop, again if the table says so. `None` if it answered; raises what no other hop may mend."""
        retried = len(context.attempts) > 1 and _retries(context) > 0
        while True:
            # An order is no call to a model; and whoever names the backend on purpose may ask a closed one.
            order = isinstance(context.request, Control)
            permit = None if order else hop.standing.acquire(target.name_there, self._clock())
            attempt = context.begin_attempt(target, hop=number, now=self._clock())
            failed = await self._attempt(context, attempt, hop, permit, call_next)
            if failed is None:
                return None
            error, verdict = failed.error, VERDICTS[failed.outcome]
            if context.writer.committed or verdict.onward == "never":
                raise presentable(error, hop)
            again_in = self._again_in(context, failed, hop, target, retried)
            if again_in is not None:
                retried = retried or verdict.again != "wait"
                await self._pause(context, again_in, "loading" if verdict.again == "wait" else "fallback")
                if hop.standing.allows(target.name_there, self._clock()):
                    continue
            if verdict.onward == "if_other" and not _another_may(error, target, later):
                raise presentable(error, hop)
            after = error.retry_after_s
            if after is None:
                after = hop.standing.retry_in(target.name_there, self._clock()) or None
            why: Outcome | Skip = "unsupported" if isinstance(error, BadRequest) else failed.outcome
            return Passed(hop=hop, why=why, error=error, retry_after_s=after)

    async def _attempt(
        self, context: RequestContext, attempt: Attempt, hop: Hop, permit: Pass | None, call_next: CallNext
    ) -> Failed | None:
        """One try. However it ends, the breakers are told, once."""
        held = permit
        outcome: Outcome = "client_disconnected"
        word: str = "gateway_failed"
        error: GatewayError | None = None

        def answering() -> None:
            nonlocal held
            if held is not None:
                held = hop.standing.began(held, self._clock())

        attempt.on_first_token = answering
        if hop.pulse is not None:
            hop.pulse.enter(attempt)
        try:
            if hop.waker is not None and not hop.reachable():
                await self._wake(context, hop)
            await call_next()
            outcome = word = "answered"
            return None
        except asyncio.CancelledError:
            word = _ended_by(context.cancel_reason)
            raise
        except GatewayError as caught:
            error, word = caught, _ended_by(caught)
            judged = outcome_of(caught, committed=context.writer.committed)
            if judged is None:
                if not isinstance(caught, BadRequest) or context.writer.committed:
                    raise
                judged = "rejected"  # this backend's protocol has no words for the request; another one's may
            outcome = word = judged
            return Failed(outcome=judged, error=caught)
        finally:
            attempt.on_first_token = None
            if hop.pulse is not None:
                hop.pulse.leave(attempt)
            attempt.seconds, attempt.outcome = self._clock() - attempt.started_at, word
            self._tell(context, hop, attempt.target, held, outcome, error)
            self._record_cost(context, attempt, hop, outcome)

    def _tell(
        self,
        context: RequestContext,
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
        elif outcome == "answered" and context.only is not None:
            hop.standing.mended(target.name_there)
        if outcome in ("unreachable", "connect_timeout"):
            hop.suspect()
        if error is None:
            return
        said = error.body[:300] if isinstance(error, BackendRejected) else error.message
        if isinstance(said, bytes):
            said = said.decode("utf-8", "replace")
        told = (context.id, hop.name, WORDS[outcome], printable(said))
        if VERDICTS[outcome].alert:
            logger.error("%s: %s %s, and is left alone for a while; look after its key and account: %s", *told)
        else:
            logger.info("%s: %s %s: %s", *told)

    def _record_cost(self, context: RequestContext, attempt: Attempt, hop: Hop, outcome: Outcome) -> None:
        target, usage = attempt.target, attempt.usage
        answered = outcome == "answered" or attempt.first_token_at is not None
        cost = usage.cost if usage is not None else None
        price = hop.price(target.model, target.name_there) if cost is None and hop.prices else None
        if price is not None and usage is not None:
            cost = price.cost(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        elif price is not None and answered:
            # Nobody asked for the figures: about four bytes are a token, and about one piece of an answer.
            cost = price.cost(len(context.request.origin.body) // 4, 0, attempt.segments)
        attempt.cost = cost
        if (cost is not None or answered) and not hop.local and hop.spending is not None:
            hop.spending.add(hop.name, cost)

    def _again_in(
        self, context: RequestContext, failed: Failed, hop: Hop, target: Target, retried: bool
    ) -> float | None:
        """In how many seconds the same hop is to be asked again; `None` if it is not."""
        now = self._clock()
        if says_retryable(failed.error) is False:
            return None
        match VERDICTS[failed.outcome].again:
            case "wait":
                left = (context.deadline or now) - now
                return None if isinstance(failed.error, WaitTimeout) or left <= 0 else min(_ASK_LOADING_S, left)
            case "if_short":
                after = failed.error.retry_after_s
                if retried or after is None or after > SHORT_WAIT_S or not self._budget.spend(now):
                    return None
                return max(after, hop.standing.retry_in(target.name_there, now)) + 0.005
            case "budget":
                return 0.0 if not retried and self._budget.spend(now) else None
        return None

    async def _wake(self, context: RequestContext, hop: Hop) -> None:
        """Call the machine and wait for it, together with everybody else who does."""
        assert hop.waker is not None
        until = hop.waker.call()
        if until is None:
            raise BackendUnavailable(f"{hop.name} sleeps, and was called in vain a moment ago", backend=hop.name)
        if context.deadline is not None:
            until = min(until, context.deadline)
        if not await self._shown(context, until, "waking", hop.waker.wait):
            raise BackendUnavailable(f"{hop.name} sleeps, and did not wake up in time", backend=hop.name)

    async def _pause(self, context: RequestContext, seconds: float, phase: ProgressPhase) -> None:
        async def sleep(for_s: float) -> bool:
            await anyio.sleep(max(0.0, for_s))
            return False

        if seconds > 0:
            await self._shown(context, self._clock() + seconds, phase, sleep)

    async def _shown(
        self, context: RequestContext, until: float, phase: ProgressPhase, wait: Callable[[float], Awaitable[bool]]
    ) -> bool:
        """Wait for something, at most until then, and show streaming clients that it is waited for.

        Raises `ShuttingDown` if the gateway stops meanwhile.
        """
        settings, now = self._settings, self._clock()
        began_at = now
        shows = context.writer.patient and settings.progress != "off"
        due = max(now, context.started_at + settings.progress_after_s) if shows else float("inf")
        while True:
            with self._pauses.entered():
                if await wait(min(due, until) - now):
                    return True
            now = self._clock()
            if now >= until:
                return False
            if now >= due:
                model = context.model or ""
                eta_s = until - now if phase == "waking" else None
                await context.writer.heartbeat(Progress(phase=phase, model=model, eta_s=eta_s, waited_s=now - began_at))
                now = self._clock()
                due = now + settings.progress_every_s


def _enter(context: RequestContext, walk: list[Passed]) -> None:
    """Another hop is asked now, after those in `walk`."""
    if walk:
        context.reason = reason(walk)
        context.failed_hops = tuple((each.hop.name, each.why) for each in walk)


def _too_long(context: RequestContext, target: Target, later: tuple[Target, ...]) -> bool:
    """Whether the prompt cannot fit here, and somebody else may have room: else the engine says by how much."""
    request = context.request
    if not (target.context and later) or not isinstance(request, (ChatRequest, CompletionRequest)):
        return False
    roomier = any(not other.context or other.context > target.context for other in later)
    return roomier and tokens_at_least(request.origin.body) > target.context


def _ended_by(ending: GatewayError | None) -> str:
    """What ended an attempt that is nobody's failure. Without a reason it is cut off by the end of the gateway."""
    if ending is None or isinstance(ending, ShuttingDown):
        return "stopped"
    return (
        "cancelled"
        if isinstance(ending, RequestCancelled)
        else "client_disconnected"
        if isinstance(ending, ClientDisconnected)
        else ending.code
    )


def _retries(context: RequestContext) -> int:
    """How often the same target was asked again, waiting for one that loads aside."""
    count = 0
    for before, after in zip(context.attempts, context.attempts[1:], strict=False):
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
