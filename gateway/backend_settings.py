"""The settings of a backend, and the rules for them that types cannot express."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from hostler.gateway.forwarded_headers import pattern_mistake
from hostler.gateway.model_mapping import ModelMapping, mapping_mistakes
from hostler.gateway.wake_settings import WakeSettings, wake_mistakes
from hostler.profiles.request_rules import RequestRules
from hostler.profiles.yaml_config import Document, DocumentError, KeyPath

#: What a model can do, under Ollama's names; `rerank` is for models that rank documents.
Capability = Literal[
    "completion", "tools", "vision", "audio", "image", "thinking", "insert", "embedding", "rerank", "decision"
]
#: The values of `proxy` that are no URLs.
ENVIRONMENT, NO_PROXY = "environment", "none"


#: Larger numbers from a backend are no token counts.
_MOST_TOKENS = 10**12


class PriceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """US dollars for a million tokens. `cached` is for input tokens read from a cache; left out, they cost as much as
    others."""

    input: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Price of a million prompt tokens."""
    output: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Price of a million completion tokens."""
    cached: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Price of a million prompt tokens that are read from the server's cache. Default: as `input`."""

    def cost(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
        """The cost of an answer in US dollars. Cached tokens are part of the prompt's."""
        cached = self.input if self.cached is None else self.cached
        fresh, read, written = (
            min(max(0, tokens), _MOST_TOKENS)
            for tokens in (prompt_tokens - cached_tokens, cached_tokens, completion_tokens)
        )
        return (fresh * self.input + read * cached + written * self.output) / 1_000_000


class BackendTimeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Time limits of one backend, in seconds, instead of those in `gateway.timeouts`."""

    connect_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Time to establish a connection to the backend."""
    first_byte_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Time from the end of the request to the first byte of the answer."""
    first_token_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Time to the first token while the backend sends keep-alives."""
    between_bytes_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Time between two bytes of an answer."""


class RateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much a backend gets in a minute. Beyond that, the next backend of the chain is tried."""

    requests_per_minute: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Requests that the backend gets in a minute."""
    tokens_per_minute: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Tokens of prompts and answers that the backend gets in a minute."""


class ModelDescription(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known about a backend's model, where the backend does not report it, or reports it wrong."""

    context: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """The context of one request to the model, prompt and answer together."""
    capabilities: tuple[Capability, ...] | None = None
    """What the model can do."""
    quantization: str | None = None
    """How the weights of the model are stored."""
    description: str | None = None
    """Description of the model in lists of models."""
    metadata: Mapping[str, Any] = {}
    """Further values for the model's entry in OpenAI's list of models."""


class BackendSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another machine's supervisor, or a server that speaks a protocol.

    `models` filters the models that the server has (`include`, `exclude`), or maps our names to the server's, or both;
    left out, it has all of them. `local`: whether `local_only` requests may go there; left out, it follows from kind and
    address.
    """

    kind: Literal["supervisor", "openai", "llamacpp", "ollama", "lmstudio", "anthropic"]
    """`supervisor`: a Hostler supervisor on another machine; it reports its models, and they are switched on demand.
    `llamacpp`: a `llama-server` that runs elsewhere. `ollama`: an Ollama server. `lmstudio`: LM Studio. `anthropic`:
    Anthropic's Messages API. `openai`: anything else with OpenAI's protocol, for example vLLM or OpenRouter."""
    url: str
    """Its address, `http://` or `https://`, of a supervisor also `unix:/run/hostler/supervisor.sock`. For `openai` the
    path in front of `/chat/completions`, as the server's documentation gives it; without a path `/v1` is tried, then
    none. For the others a `/v1` at the end makes no difference. A query goes with every request; `user:password@` is
    sent as HTTP Basic."""
    token: str | None = None
    """Supervisors: the value of `supervisor.token` there."""
    token_file: str | None = None
    """Supervisors: file that contains the token."""
    certificate: str | None = None
    """Supervisors with an `https://` URL: file with the certificate that they must have, whatever names are in it.
    Default: what the system trusts."""
    api_key: str | None = None
    """All kinds but `supervisor`: the API key to send. Clients' own keys are never passed on."""
    api_key_file: str | None = None
    """All kinds but `supervisor`: file that contains the API key."""
    headers: Mapping[str, str] = {}
    """All kinds but `supervisor`: further headers for every request; they replace those of the same name, the API key's
    as well."""
    query: Mapping[str, str] = {}
    """All kinds but `supervisor`: parameters that are added to the query of every request, in place of those of the same name."""
    ca_file: str | None = None
    """All kinds but `supervisor`: the certificates to trust instead of the system's and those of `SSL_CERT_FILE`, as
    PEM."""
    insecure: bool = False
    """All kinds but `supervisor`: do not verify the server's certificate."""
    client_cert_file: str | None = None
    """All kinds but `supervisor`: the certificate to show to the server, as PEM, perhaps with its key."""
    client_key_file: str | None = None
    """All kinds but `supervisor`: the key of that certificate, if it is in a file of its own; without a passphrase."""
    proxy: str | None = None
    """All kinds but `supervisor`: `environment` heeds `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, `none`
    ignores them; or the URL of a proxy, `http://`, `https://` or (with `pip install socksio`) `socks5://`. Default:
    `none` for local backends, `environment` for others."""
    models: Mapping[str, str | tuple[str, ...]] = {}
    """Which models it serves: our names with those on the server, and `include` and `exclude` with lists of names that
    filter its own. Default: all that it has."""
    context: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """All kinds but `supervisor`: the context of its models, instead of what it reports. A prompt that cannot fit goes
    to the next backend of the chain."""
    describe: Mapping[str, ModelDescription] = {}
    """What the server does not report of its models, or reports wrong, by their names or patterns."""
    timeouts: BackendTimeouts | None = None
    """Time limits that differ from those in `gateway.timeouts`."""
    limits: RateSettings | None = None
    """How many requests and tokens it gets in a minute."""
    local: bool | None = None
    """Whether it is local, so that `local_only` requests may go there. Default: supervisors are; addresses of loopback,
    of private networks (10/8, 172.16/12, 192.168/16, fc00::/7) and link-local ones are; names without a dot and those
    that end in `.lan`, `.local`, `.home.arpa`, `.internal` or `.localhost` are; everything else, including VPN
    addresses (100.64/10), needs `local: true`."""
    referer: str | None = None
    """All kinds but `supervisor`: the `HTTP-Referer` to send, by which OpenRouter identifies an application."""
    title: str | None = None
    """All kinds but `supervisor`: the `X-Title` to send with it."""
    forward_headers: tuple[str, ...] = ()
    """All kinds but `supervisor`: clients' headers that are passed on, by name or as the beginning of one (`x-team-*`).
    Keys, cookies and `X-Forwarded-*` never are,
    and a star stands for no header whose name is that of a secret."""
    prices: Mapping[str, PriceSettings] = {}
    """What its models cost, by their names or patterns, where answers do not report their cost."""
    wake: WakeSettings | None = None
    """How the machine is woken by Wake-on-LAN when a request needs it. Left out: it is not."""
    request: RequestRules | None = None
    """Changes of all requests to this backend."""

    @property
    def is_local(self) -> bool:
        """Whether it is local: as configured, or a supervisor, or at an address that only exists in a local network."""
        if self.local is not None:
            return self.local
        return self.kind == "supervisor" or is_local_host(urlsplit(self.url).hostname or "")

    @property
    def shown_url(self) -> str:
        """Its address without credentials and query."""
        url = urlsplit(self.url)
        if url.scheme == "unix":
            return self.url
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path.rstrip('/')}"

    @property
    def is_direct(self) -> bool:
        """Whether it is reached over the local network without a proxy."""
        return self.is_local and self.proxy in (None, NO_PROXY)

    @property
    def proxy_setting(self) -> str:
        """`environment`, `none`, or a proxy's URL. Left out, only remote backends heed the environment."""
        return self.proxy or (NO_PROXY if self.is_local else ENVIRONMENT)

    @property
    def mapping(self) -> ModelMapping:
        """The names of its models."""
        return ModelMapping.parse(self.models)


#: Domains that no public name server knows: RFC 6761, 6762 and 8375, ICANN's resolution on `internal`, and what routers
#: assign.
_LOCAL_DOMAINS = (".localhost", ".local", ".home.arpa", ".internal", ".lan")
#: Addresses of this machine and of its own network: RFC 1122, 1918, 3927, 4193 and 4291.
_LOCAL_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
        *("::1/128", "fc00::/7", "fe80::/10"),
    )
)
#: A name without a dot is looked up in the local network only; a number is an address in disguise.
_PLAIN_NAME = re.compile(r"(?!0x)[a-z][a-z0-9_-]*|[a-z0-9_-]*[g-wyz_-][a-z0-9_-]*")


def is_local_host(host: str) -> bool:
    """Whether a name or address exists in a local network only. False for every name that could be registered."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.endswith(_LOCAL_DOMAINS) or _PLAIN_NAME.fullmatch(host) is not None
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in network for network in _LOCAL_NETWORKS)


#: What a header may be called, and what it may contain.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\xa0-\xff]+")
#: Headers that frame a message or belong to one connection.
_FRAMING = frozenset(
    (
        *("accept-encoding", "connection", "content-length", "content-type", "expect", "keep-alive"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    )
)
_PROXY = re.compile(rf"{ENVIRONMENT}|{NO_PROXY}|(https?|socks5h?)://[^/?#]+/?")
#: Settings of the HTTP connection. Supervisors are reached in a way of their own.
_CONNECTION_SETTINGS = (
    *(
        "headers",
        "query",
        "ca_file",
        "insecure",
        "client_cert_file",
        "client_key_file",
        "proxy",
        "describe",
        "forward_headers",
    ),
)


def backend_errors(document: Document, name: str, backend: BackendSettings) -> Iterator[DocumentError]:
    """The errors about rules that types cannot express."""
    path = ("backends", name)
    yield from _url_errors(document, (*path, "url"), backend.url, supervisor=backend.kind == "supervisor")
    for key in ("referer", "title"):  # sent as headers
        value = getattr(backend, key)
        if value is not None and not _HEADER_VALUE.fullmatch(value):
            yield document.error((*path, key), "must be one line of plain text")
    for header, value in backend.headers.items():
        if (mistake := header_mistake(header, value)) is not None:
            yield document.error((*path, "headers", header), mistake)
    for index, pattern in enumerate(backend.forward_headers):
        if (mistake := pattern_mistake(pattern)) is not None:
            yield document.error((*path, "forward_headers", index), mistake)
    if backend.proxy is not None and not _PROXY.fullmatch(backend.proxy):
        message = (
            f"must be {ENVIRONMENT}, {NO_PROXY}, or a URL such as http://proxy.lan:3128 or socks5://proxy.lan:1080"
        )
        yield document.error((*path, "proxy"), message)
    if backend.client_key_file is not None and backend.client_cert_file is None:
        yield document.error((*path, "client_key_file"), "client_cert_file is missing: the certificate of this key")
    if backend.insecure and backend.ca_file is not None:
        yield document.error((*path, "insecure"), "nothing is verified, so ca_file has no effect; remove one of them")
    if backend.certificate is not None and (backend.kind != "supervisor" or not backend.url.startswith("https://")):
        yield document.error(
            (*path, "certificate"), "only for supervisors with an https:// URL; remove it or change these"
        )
    if backend.wake is not None:
        for key, mistake in wake_mistakes(backend.wake):
            yield document.error((*path, "wake", key), mistake)
    if backend.kind == "supervisor":
        for key in _CONNECTION_SETTINGS:
            if getattr(backend, key):
                yield document.error((*path, key), "has no effect for kind: supervisor; remove it")
    for steps, message in backend.request.mistakes() if backend.request is not None else ():
        yield document.error((*path, "request", *steps), message)
    for key, message in mapping_mistakes(backend.models, supervisor=backend.kind == "supervisor"):
        yield document.error((*path, "models", key), message)


def _url_errors(document: Document, path: KeyPath, text: str, *, supervisor: bool) -> Iterator[DocumentError]:
    if supervisor and text.startswith("unix:"):
        if not text.startswith("unix:/"):
            yield document.error(path, f"{text!r} must name the socket in full, e.g. unix:/run/hostler/supervisor.sock")
        return
    if not text.startswith(("http://", "https://")):
        yield document.error(path, f"{text!r} must start with http:// or https://")
        return
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as error:
        yield document.error(path, f"is not a valid address: {error}")
        return
    if port == 0:
        yield document.error(path, "the port must not be 0")
    if url.fragment:
        yield document.error(path, "must not contain #")


def header_mistake(name: str, value: str) -> str | None:
    """What is wrong with a header for a backend; `None` if nothing is."""
    if not _HEADER_NAME.fullmatch(name):
        return "is not the name of a header"
    if name.lower() in _FRAMING:
        return "is set by Hostler itself; remove it"
    return None if _HEADER_VALUE.fullmatch(value) else "must be one line of plain text"
