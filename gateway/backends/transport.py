"""The interface of transports: values, and what a transport guarantees.

No protocol, no model and no retry policy here: a transport takes a complete request and returns the response's bytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol
from urllib.parse import unquote_plus

import msgspec

from hostler.adapters.base import Upstream, WireRequest
from hostler.adapters.canonical import ResponseHead
from hostler.adapters.redaction import Redactor, redactor
from hostler.supervisor.contract import AnswerLimits, EngineAddress

#: A prompt may take so many times `first_byte_s` as long as keep-alives show that it is being read.
KEEP_ALIVE_FACTOR = 6


class TlsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the certificate of a server is verified: against `ca_file` alone if it is set, or not at all. The client
    certificate may contain its key."""

    ca_file: str | None = None
    insecure: bool = False
    client_cert_file: str | None = None
    client_key_file: str | None = None


class EndpointOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is special about the connection to a backend. `query` is appended to that of every request, `headers` replace
    the request's own, and `secrets` are removed from what the backend answers.

    `proxy` is a URL, `environment` or `none`; only `HttpxTransport` knows proxies.
    """

    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    tls: TlsOptions = TlsOptions()
    proxy: str = "none"
    secrets: tuple[str, ...] = ()


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a backend listens. `name` is its name in the configuration, the only thing about it that errors contain.

    `key` is sent as a bearer token. `base_path` is prepended to every request's path: empty, or `/like/this`. `is_engine`:
    a supervisor has started it, with a key that is of no use elsewhere or later.
    """

    host: str
    port: int
    name: str
    key: str | None = None
    tls: bool = False
    base_path: str = ""
    options: EndpointOptions | None = None
    is_engine: bool = False

    def target(self, path: str) -> str:
        """The path of a request with the backend's own path and query, whose parameters replace those of the same name."""
        path = self.base_path.rstrip("/") + path
        if self.options is None or not self.options.query:
            return path
        path, _, query = path.partition("?")
        return f"{path}?{with_query(query, self.options.query)}"

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The headers that are sent with every request, in place of its own."""
        return () if self.options is None else self.options.headers

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not come back in an answer, besides the key."""
        return () if self.options is None else self.options.secrets

    def redactor(self) -> Redactor | None:
        """Removes the key and the secrets from one answer; `None` if there are none. Engines do not send them in disguise."""
        return redactor(self.key, self.secrets, encoded=not self.is_engine)


#: A time limit that ends so much later than it should, as a factor, ended while the process was suspended: its time is over
#: when it continues, whatever the backend did meanwhile.
SUSPENDED_FACTOR = 1.25


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Time limits in seconds. There is none on the whole request.

    `first_byte_s` applies once until the response's head and once more until its body starts (an engine sends the head
    when it starts to read the prompt); it also bounds each stall while the request is being sent. `between_bytes_s`
    applies only while bytes are awaited: a slow reader is not a slow backend. `first_token_s` is the limit for a backend
    that sends keep-alives instead of a first token; 6 times `first_byte_s` without one.
    """

    connect_s: float = 2.0
    first_byte_s: float = 300.0
    between_bytes_s: float = 120.0
    first_token_s: float | None = None

    @property
    def longest_prompt_s(self) -> float:
        """How long the first token may take while keep-alives arrive."""
        return KEEP_ALIVE_FACTOR * self.first_byte_s if self.first_token_s is None else self.first_token_s

    def limited(self, limits: AnswerLimits) -> Timeouts:
        """These limits, except for those that a profile has of its own."""
        return msgspec.structs.replace(
            self,
            first_byte_s=self.first_byte_s if limits.first_byte_s is None else limits.first_byte_s,
            between_bytes_s=self.between_bytes_s if limits.between_bytes_s is None else limits.between_bytes_s,
        )


class BackendResponse(Protocol):
    """A backend's response, from its head on. Valid inside the context that returned it."""

    @property
    def head(self) -> ResponseHead:
        """Status, media type with its parameters, and the body's length where it was given."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that may be forwarded, names in lower case, several of one name joined by commas.

        Without those of the connection (`Connection`, `Transfer-Encoding`, ...), `Content-Length`, `Set-Cookie`,
        `Server`, `Access-Control-*` and `X-Accel-*`.
        """
        ...

    @property
    def until_close(self) -> bool:
        """Whether only the end of the connection ends the body, so that a truncated response looks complete."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the whole body has arrived, read or not."""
        ...

    def segments(self) -> AsyncIterator[bytes]:
        """The body in non-empty pieces as they arrive. Ends normally only if the body is complete.

        Raises `BackendTimeout` after too long a silence and `BackendBroken` if the response is truncated; what arrived
        before is yielded first.
        """
        ...

    def expect_first_byte(self) -> None:
        """What has arrived did not begin the answer: the next piece has `first_byte_s` again."""
        ...

    async def read(self, limit: int) -> bytes:
        """The rest of the body, silently truncated to `limit` bytes."""
        ...


class Transport(Protocol):
    """Carries requests to backends. One per gateway; used from one event loop."""

    def send(
        self, request: WireRequest, endpoint: Endpoint, timeouts: Timeouts
    ) -> AbstractAsyncContextManager[BackendResponse]:
        """Send the request; inside the context, the response's head has arrived.

        Leaving the context before the body is complete closes the connection at once, so that the backend stops
        working. Responses of every status are returned as they are, redirects too.

        Raises `BackendUnavailable` if the backend cannot have started on the request, `BackendTimeout`,
        `BackendBroken`, and `BadRequest` for a request that cannot be sent.
        """
        ...

    def close_idle(self, endpoint: Endpoint) -> None:
        """Close the idle connections to this endpoint."""
        ...

    def close_all(self, endpoint: Endpoint) -> None:
        """Close every connection to this endpoint; requests on them raise `BackendBroken`. For an engine about to
        stop."""
        ...

    async def aclose(self) -> None:
        """Close every connection, and return once they are closed. Requests in flight raise `BackendBroken`."""
        ...


#: The path that a server of each kind is checked with; those of supervised engines are `llamacpp`.
HEALTH_PATHS = {
    "openai": "/models",  # below the prefix
    "llamacpp": "/health",
    "ollama": "/api/version",
    "lmstudio": "/v1/models",
    "anthropic": "/v1/models",
}


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """How requests reach a backend. `endpoint` is `None` where a lease provides it. `headers` go with every request,
    and so do those of the client that `forward_headers` names.

    `folds`: whole answers are requested as streams and folded here. llama.cpp's server notices that the client of a
    whole answer has disconnected only when nothing else has a result for a second; it stops a stream within a token.
    `local`: it is on the local network, so that an error with a reason is the request's fault as long as `health_path`
    responds. What stands behind a remote address is not known. `engines` are the protocols of its other engines.
    """

    name: str
    upstream: Upstream
    transport: Transport
    timeouts: Timeouts
    endpoint: Endpoint | None = None
    folds: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    forward_headers: tuple[str, ...] = ()
    local: bool = False
    health_path: str = HEALTH_PATHS["llamacpp"]
    engines: Mapping[str, Upstream] = {}

    def speaking(self, address: EngineAddress) -> Backend:
        """This backend as its engine at `address` is spoken to, which is no llama-server."""
        headers = (("x-api-key", address.key),) if address.key_header == "x-api-key" else ()
        return msgspec.structs.replace(
            self,
            upstream=self.engines[address.protocol],
            folds=False,
            headers=headers,
            health_path=HEALTH_PATHS[address.protocol],
        )


def with_query(query: str, own: str) -> str:
    """A query with parameters of our own in place of those of the same name."""
    if not query or not own:
        return query or own
    names = {_parameter(each) for each in own.split("&")}
    return "&".join([each for each in query.split("&") if _parameter(each) not in names] + [own])


def _parameter(text: str) -> str:
    return unquote_plus(text.partition("=")[0])
