"""The limits of the client's key: which backends it may use, and how much in a minute and in a day."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping

from hostler.adapters.canonical import CountRequest, LoadRequest, WebSocketRequest
from hostler.adapters.errors import Forbidden, RateLimited, UpgradeRequired
from hostler.gateway.asgi import CONTEXT_KEY, ASGIApp, Receive, Scope, Send
from hostler.gateway.backends.hop import Hop
from hostler.gateway.backends.reservation import estimate
from hostler.gateway.context import Attempt, KeyRules, RequestContext
from hostler.gateway.key_usage import KeyAccounts, KeyReservation
from hostler.gateway.middleware.base import CallNext, RequestMiddleware


class KeyLimitsMiddleware(RequestMiddleware):
    """Keeps requests within the rules of their keys, and counts what they use. Raises `Forbidden`, `RateLimited`, and
    `UpgradeRequired` for a WebSocket connection whose tokens or costs the rules limit: they are not counted there.

    Requests without rules pass. Beyond the day's dollars a request still goes to the local backends among its candidates.
    """

    def __init__(
        self, app: ASGIApp, *, hops: Mapping[str, Hop], usage: KeyAccounts, wall: Callable[[], float] = time.time
    ) -> None:
        super().__init__(app)
        self._hops = hops
        self._usage = usage
        self._wall = wall

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        context: RequestContext = scope[CONTEXT_KEY]
        # Most keys have no rules: their requests take no frames for them.
        return super().__call__(scope, receive, send) if context.client.rules else self.app(scope, receive, send)

    def dispatch(self, context: RequestContext, call_next: CallNext) -> Awaitable[None]:
        rules = context.client.rules
        assert rules is not None, "requests without rules pass"
        if rules.backends:
            _keep_allowed_backends(context, rules)
        if isinstance(context.request, WebSocketRequest):
            self._keep_uncounted(context, rules)
        if not rules.counts or isinstance(context.request, LoadRequest):
            return call_next()
        return self._counted(context, rules, call_next)

    async def _counted(self, context: RequestContext, rules: KeyRules, call_next: CallNext) -> None:
        local = tuple(target for target in context.candidates if self._hops[target.backend].local)
        admission = await self._usage.admit(
            context.client.name,
            rules,
            prompt_tokens=_prompt_tokens(context),
            dollars=self._dollars(context),
            has_local=bool(local),
        )
        headers = context.adapter.rate_limit_headers(admission.limits, self._wall())
        context.limit_headers = tuple((name.encode(), value.encode()) for name, value in headers)
        if admission.reservation is None:
            raise RateLimited(admission.refused, retry_after_s=admission.retry_after_s)
        if admission.local_only:
            context.candidates = local
        try:
            await call_next()
        finally:
            self._settle(context, admission.reservation)

    def _keep_uncounted(self, context: RequestContext, rules: KeyRules) -> None:
        """Keep the candidates at which a WebSocket connection uses nothing that the key has a limit of."""
        limited = ""
        if rules.tokens_per_minute is not None or rules.tokens_per_day is not None:
            limited = "tokens"
        elif rules.dollars_per_day is not None and context.candidates:
            context.candidates = tuple(each for each in context.candidates if self._hops[each.backend].local)
            limited = "" if context.candidates else "costs"
        if limited:
            raise UpgradeRequired(
                f"this API key has a limit on {limited}, which are not counted on WebSocket connections; "
                "send plain HTTP requests"
            )

    def _dollars(self, context: RequestContext) -> float:
        """What the request may cost at the dearest backend that may answer it."""
        if context.local_only:
            return 0.0
        amounts = [estimate(context, self._hops[target.backend], target) for target in context.candidates]
        return max((each.amount for each in amounts if each is not None), default=0.0)

    def _settle(self, context: RequestContext, reservation: KeyReservation) -> None:
        prompt, answer, dollars = 0, 0, 0.0
        for attempt in context.attempts:
            charged = attempt.is_charged
            if attempt.usage is not None:
                prompt += attempt.usage.prompt_tokens
                answer += attempt.usage.completion_tokens
            elif charged and not isinstance(context.request, CountRequest):
                prompt += _prompt_tokens(context)
                answer += attempt.segments
            dollars += self._cost(attempt, reservation) if charged else attempt.cost or 0.0
        self._usage.settle(reservation, prompt_tokens=prompt, answer_tokens=answer, dollars=dollars)

    def _cost(self, attempt: Attempt, reservation: KeyReservation) -> float:
        """What an answer has cost; as much as was reserved if it broke off before its cost was known."""
        if attempt.cost is not None:
            return attempt.cost
        is_remote = not self._hops[attempt.target.backend].local
        return reservation.dollars if is_remote and attempt.outcome != "answered" else 0.0


def _keep_allowed_backends(context: RequestContext, rules: KeyRules) -> None:
    allowed = tuple(target for target in context.candidates if rules.allows_backend(target.backend))
    if context.candidates and not allowed:
        raise Forbidden(f"this API key may not use the backends of {context.shown_model}")
    context.candidates = allowed


def _prompt_tokens(context: RequestContext) -> int:
    """About four bytes are a token."""
    return len(context.request.origin.body) // 4
