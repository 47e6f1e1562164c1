"""Which operations the scopes of a key allow."""

from __future__ import annotations

from hostler.gateway.asgi import RouteMatch
from hostler.gateway.context import Client


def allows(client: Client, route: RouteMatch) -> bool:
    """Whether the key's scopes cover the operation: `operate` includes `read`, and `infer` model lists."""
    operation = route.operation
    if operation.scope == "open" or operation.scope in client.scopes:
        return True
    if operation.scope == "read" and "operate" in client.scopes:
        return True
    return operation.model_info and "infer" in client.scopes
