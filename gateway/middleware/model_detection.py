"""Model detection: which model the request means, and which targets could answer for it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Container, Iterable
from typing import Protocol

from hostler.adapters.canonical import Passthrough
from hostler.adapters.errors import BadRequest, Forbidden, ModelNotFound, ModelNotLoaded, ModelUnavailable
from hostler.adapters.needs import service_of
from hostler.gateway.asgi import ASGIApp
from hostler.gateway.context import KeyRules, RequestContext, Target
from hostler.gateway.middleware.base import CallNext, RequestMiddleware
from hostler.gateway.placements import Placement, rules_of
from hostler.gateway.prompt_identity import identify_prompt, is_large, prompt_identity
from hostler.supervisor.contract import PromptIdentity

#: Models whose targets are kept, at most.
_MAX_KEPT = 10_000

FindModel = Callable[[str | None, str | None], Placement]


class FindAny(Protocol):
    def __call__(self, *, sends: bool, hosts: bool) -> Placement | None: ...


OrderTargets = Callable[[tuple[Target, ...], PromptIdentity | None], tuple[Target, ...]]


class ModelDetectionMiddleware(RequestMiddleware):
    """Turns the request's model name into candidates, and applies the model's preset to the request.

    `find` takes a name and the capability that the request needs, and raises `ModelNotFound` for an unknown name, or
    `ModelUnavailable` while no names are known; `refresh` then asks backends for new models, and returns whether any was
    asked. `without_model` finds backends for requests that name no model and that any backend may understand,
    `default_for` the model of requests that name none while the active one lacks the capability that they need, or `None`
    while it has it. `Forbidden` is raised for a model that the client's key may not use. `order` may reorder targets that
    are equally good for a prompt; it is read only if several of them are `hosts`. Requests for an engine's path in which
    one of the expressions `loaded_only` is found do not load its model: `ModelNotLoaded`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        find: FindModel,
        without_model: FindAny,
        order: OrderTargets,
        hosts: Container[str],
        refresh: Callable[[], Awaitable[bool]],
        default_for: Callable[[str], str | None] = lambda _: None,
        loaded_only: Iterable[str] = (),
    ) -> None:
        super().__init__(app)
        self._find = find
        self._without_model = without_model
        self._order = order
        self._hosts = hosts
        self._refresh = refresh
        self._default_for = default_for
        self._loaded_only = tuple(re.compile(each) for each in loaded_only)
        self._targets: dict[str, tuple[Placement, tuple[Target, ...]]] = {}

    def dispatch(self, context: RequestContext, call_next: CallNext, *, refreshed: bool = False) -> Awaitable[None]:
        request, rules = context.request, context.client.rules
        name = request.model
        service = service_of(request)
        if name is None and service is not None:
            name = self._default_for(service)
        try:
            if rules is not None and rules.models:
                placement = self._find_allowed(name, rules, service)
            elif name is None and isinstance(request, Passthrough) and (request.any_backend or request.any_server):
                placement = self._find_any(request)
            else:
                placement = self._find(name, service)
        except (ModelNotFound, ModelUnavailable):
            if refreshed:
                raise
            return self._dispatch_refreshed(context, call_next)
        if self._loaded_only and isinstance(request, Passthrough):
            self._check_loaded(request, placement)
        context.model = placement.model
        context.local_only = context.local_only or placement.local_only
        adapter = context.adapter
        if placement.preset is not None and placement.preset.changes_requests:
            context.request = adapter.apply_preset(context.request, placement.preset)
        context.request = adapter.validate(context.request, placement.card)
        if placement.card.progress is not None:
            context.writer.encoder.set_progress(placement.card.progress)
        context.writer.encoder.bind_model(placement.card)
        context.candidates = self._targets_of(placement)
        if len(context.candidates) < 2 or sum(each.backend in self._hosts for each in context.candidates) < 2:
            return call_next()
        if is_large(context.request):
            return self._dispatch_ordered(context, call_next)
        context.prompt = prompt_identity(context.request, context.headers, context.client.owner)
        context.candidates = self._order(context.candidates, context.prompt)
        return call_next()

    async def _dispatch_ordered(self, context: RequestContext, call_next: CallNext) -> None:
        context.prompt = await identify_prompt(context.request, context.headers, context.client.owner)
        context.candidates = self._order(context.candidates, context.prompt)
        await call_next()

    def _check_loaded(self, request: Passthrough, placement: Placement) -> None:
        """Raises `ModelNotLoaded` for a request that would load its model, and must not."""
        if placement.card.state == "loaded" or not all(place.hosted for place in placement.places):
            return
        if found := next((each for each in self._loaded_only if each.search(request.origin.path)), None):
            raise ModelNotLoaded(
                f"{placement.model} is not loaded, and requests for this path do not load it: gateway.switching.loaded_only "
                f"has {found.pattern}",
                model=placement.model,
            )

    def _find_any(self, request: Passthrough) -> Placement:
        """Where a request goes that names no model, and that any backend may understand."""
        placement = self._without_model(sends=bool(request.origin.body), hosts=not request.any_server)
        return self._find(None, None) if placement is None else placement

    async def _dispatch_refreshed(self, context: RequestContext, call_next: CallNext) -> None:
        """Look again for a model that is unknown: a server may have it since a moment ago."""
        await self._refresh()
        await self.dispatch(context, call_next, refreshed=True)

    def _find_allowed(self, name: str | None, rules: KeyRules, service: str | None) -> Placement:
        """The model, if the client's key may use it. Errors name none that it may not."""
        allowed = f"this API key may use: {', '.join(rules.models)}"
        try:
            placement = self._find(name, service)
        except ModelNotFound as error:
            raise ModelNotFound(f"the model does not exist; {allowed}", model=error.model, param="model") from None
        except BadRequest:
            raise BadRequest(f"no model named and none loaded; {allowed}", param="model") from None
        if not rules.allows_model(placement.card.name):
            raise Forbidden(f"this API key may not use this model; {allowed}", param="model")
        return placement

    def _targets_of(self, placement: Placement) -> tuple[Target, ...]:
        """The placement's targets, kept as long as the catalogue keeps the placement."""
        known = self._targets.get(placement.card.name)
        if known is None or known[0] is not placement:
            is_idle = placement.card.state not in ("loaded", "loading")
            targets = tuple(
                Target(
                    backend=place.backend,
                    model=placement.model,
                    name_there=place.name_there,
                    context=place.context,
                    needs_load=place.hosted and is_idle,
                    lacks=place.lacks,
                    limits=place.limits,
                    request=rules_of(placement, place),
                )
                for place in placement.places
            )
            if len(self._targets) >= _MAX_KEPT:  # names that are passed on are not bounded
                self._targets.clear()
            known = self._targets[placement.card.name] = (placement, targets)
        return known[1]
