"""Which operations the scopes of a key allow."""

from __future__ import annotations

from hostler.gateway.asgi import RouteMatch
from hostler.gateway.context import Client


def allows(client: Client, route: RouteMatch) -> bool:
    """Whether the key's scopes cover the operation: `infer` includes model lists."""
    operation = route.operation
    if operation.scope == "open" or has_scope(client, operation.scope):
        return True
    return operation.model_info and "infer" in client.scopes


def has_scope(client: Client, scope: str) -> bool:
    """Whether the key has the scope: `operate` includes `read`."""
    return scope in client.scopes or (scope == "read" and "operate" in client.scopes)
