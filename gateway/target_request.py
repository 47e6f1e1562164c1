"""The request for a target: in the backend's protocol, with the operator's changes and the conversation's slot."""

from __future__ import annotations

import msgspec

from hostler.adapters import json_body
from hostler.adapters.base import WireRequest
from hostler.adapters.canonical import Passthrough, Request
from hostler.adapters.passthrough import forwarded
from hostler.adapters.request_rewriting import rewrite
from hostler.gateway.backends.addressing import name_there
from hostler.gateway.backends.transport import Backend
from hostler.gateway.context import RequestContext
from hostler.profiles.request_rules import changes_for


def build_request(
    context: RequestContext, backend: Backend, request: Request, *, same_wire: bool
) -> tuple[Request, WireRequest]:
    """The request as the backend's protocol needs it, and its bytes."""
    if not same_wire:
        if isinstance(request, Passthrough):
            upstream = backend.upstream
            path = upstream.forward_path(request.origin.path)
            # Where the request names no model, a name in its body is none of this gateway's.
            model = "" if request.model is None else name_there(context)
            wire_request = forwarded(request.origin, model=model, path=path, headers=upstream.headers)
            return request, _with_rules(context, wire_request)
        request = context.adapter.expand(request)
    stream = backend.folds or _streamed(request)
    wire_request = backend.upstream.build(request, model=name_there(context), stream=stream)
    wire_request = _with_rules(context, wire_request)
    lease = context.current.lease
    slot = None if lease is None else lease.slot
    return request, wire_request if slot is None else _with_slot(wire_request, slot)


def _with_rules(context: RequestContext, wire_request: WireRequest) -> WireRequest:
    """The request with the operator's changes for its target and client."""
    rules = context.current.target.request
    return rewrite(wire_request, changes_for(rules, context.client.name)) if rules else wire_request


def _with_slot(wire_request: WireRequest, slot: int) -> WireRequest:
    """The request for the slot that holds its conversation, unless the client has chosen one."""
    members = json_body.members(wire_request.body)
    if "id_slot" in members:
        return wire_request
    body = json_body.patch(wire_request.body, {"id_slot": b"%d" % slot}, members)
    return msgspec.structs.replace(wire_request, body=body)


def _streamed(request: Request) -> bool:
    output = getattr(request, "output", None)
    return output is not None and output.stream
