"""The middleware of requests for models, in order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.middleware import Middleware

from hostler.gateway.events import RequestFinished
from hostler.gateway.key_usage import KeyAccounts
from hostler.gateway.middleware.access_log import AccessLogMiddleware
from hostler.gateway.middleware.fallback import FallbackMiddleware
from hostler.gateway.middleware.key_limits import KeyLimitsMiddleware
from hostler.gateway.middleware.model_detection import ModelDetectionMiddleware
from hostler.gateway.middleware.queueing import QueueingMiddleware
from hostler.gateway.middleware.request_context import RequestContextMiddleware
from hostler.gateway.middleware.switch_orchestration import SwitchingMiddleware
from hostler.gateway.serving import ServingComponents
from hostler.gateway.stream_store import StreamStore


def model_middleware(
    parts: ServingComponents,
    *,
    log: Callable[[RequestFinished], None],
    refresh: Callable[[], Awaitable[bool]],
    key_usage: KeyAccounts | None,
    on_model_used: Callable[[str], None],
    streams: StreamStore | None = None,
    answering: Sequence[Middleware] = (),
) -> list[Middleware]:
    """The middleware, outermost first, around `Proxy`. `answering` are those that answer without a backend.

    `log` receives finished requests, `on_model_used` the models that answer; `refresh` asks backends for new models, where
    one is unknown.
    """
    settings, clock = parts.settings.gateway, parts.clock
    tracing = []
    if (tracer := parts.tracer) is not None:
        from hostler.gateway.middleware.tracing import TracingMiddleware

        tracing.append(Middleware(TracingMiddleware, record=tracer.record, should_sample=tracer.should_sample))
    key_limits = []
    if key_usage is not None:
        key_limits.append(Middleware(KeyLimitsMiddleware, hops=parts.chain.hops, usage=key_usage))
    return [
        Middleware(
            RequestContextMiddleware,
            max_body=settings.max_body,
            switching=settings.switching,
            in_progress=parts.in_flight,
            clock=clock,
            streams=streams,
        ),
        *tracing,
        Middleware(AccessLogMiddleware, bus=parts.bus, log=log, clock=clock),
        *answering,
        Middleware(
            ModelDetectionMiddleware,
            find=parts.catalog.find,
            without_model=parts.catalog.without_model,
            order=parts.host_choice.ordered,
            hosts=parts.hosts,
            refresh=refresh,
            default_for=parts.catalog.default_for,
            loaded_only=settings.switching.loaded_only,
        ),
        *key_limits,
        Middleware(
            FallbackMiddleware,
            hops=parts.chain.hops,
            budget=parts.retry_budget,
            sleeps=parts.sleeps,
            max_wait_s=settings.queue.max_wait_s,
            clock=clock,
        ),
        Middleware(QueueingMiddleware, hosts=parts.hosts, moves=parts.lease_moves, clock=clock),
        Middleware(SwitchingMiddleware, hosts=parts.hosts, on_model_used=on_model_used, on_answered=parts.on_answered),
    ]
