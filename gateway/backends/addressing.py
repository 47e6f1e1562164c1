"""Where the current attempt of a request goes: the backend in its engine's protocol, the address, the model's name there."""

from __future__ import annotations

from collections.abc import Mapping

from hostler.gateway.backends.transport import Backend, Endpoint
from hostler.gateway.context import RequestContext


def name_there(context: RequestContext) -> str:
    """The name of the current attempt's model at its backend, or at its engine if that has one of its own."""
    attempt = context.current
    own = "" if attempt.address is None else attempt.address.model_name
    return own or attempt.target.name_there


def backend_of(backends: Mapping[str, Backend], context: RequestContext) -> Backend:
    """The backend of the current attempt, in the protocol of its engine."""
    attempt = context.current
    backend, address = backends[attempt.target.backend], attempt.address
    if address is None or address.protocol == "llamacpp":
        return backend
    return backend.speaking(address)


def endpoint_of(backend: Backend, context: RequestContext) -> Endpoint:
    """The address of the current attempt: that of its backend, or of the engine of its lease."""
    if backend.endpoint is not None:
        return backend.endpoint
    address = context.current.address
    assert address is not None, "a supervised target needs a lease"
    key = address.key if address.key_header == "bearer" else None
    return Endpoint(
        host=address.host, port=address.port, key=key, name=backend.name, base_path=address.prefix, is_engine=True
    )
