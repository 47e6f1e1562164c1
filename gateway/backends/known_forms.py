"""Routes that backends and engines lack: requests go there in another form until that may have changed."""

from __future__ import annotations

from collections.abc import Callable

from hostler.adapters.canonical import Request
from hostler.adapters.errors import BackendRejected, drop_tracebacks
from hostler.gateway.context import RequestContext

#: How long it is remembered that a backend lacks a route, in seconds: it may get it with an update.
FORM_KNOWN_S = 300.0


class KnownForms:
    """What was rejected by whom: by a backend, or by the engine of a model."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._rejections: dict[tuple[str, str, str], tuple[BackendRejected, float]] = {}
        self._clock = clock

    def learn(self, context: RequestContext, request: Request, amended: Request, rejected: BackendRejected) -> None:
        """Remember that the current target lacks the route of a request, if it is sent there in another form from now on."""
        if amended.origin.wire != request.origin.wire:
            drop_tracebacks(rejected)
            self._rejections[_key(context, request)] = rejected, self._clock() + FORM_KNOWN_S

    def apply(self, context: RequestContext, request: Request) -> Request:
        """The request in the form that its target is known to understand."""
        if not self._rejections:
            return request
        key = _key(context, request)
        known = self._rejections.get(key)
        if known is None:
            return request
        if self._clock() >= known[1]:
            del self._rejections[key]
            return request
        return context.adapter.amend(request, known[0]) or request


def _key(context: RequestContext, request: Request) -> tuple[str, str, str]:
    """A host's engines may be different programs; another backend is one, whatever the model."""
    attempt = context.current
    model = "" if attempt.address is None else attempt.target.model
    return attempt.target.backend, model, request.origin.wire
