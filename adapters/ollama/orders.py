"""Orders that manage a real Ollama's models: what can be answered from the catalogue is, the rest is refused in words."""

from __future__ import annotations

import re
from typing import Any

from hostler.adapters.errors import BadRequest, Forbidden
from hostler.adapters.listing import Listing
from hostler.adapters.ollama import gojson, models
from hostler.adapters.ollama.gojson import Fields, quoted, read
from hostler.adapters.ollama.names import INVALID, named, valid
from hostler.adapters.ollama.wire import LINES
from hostler.adapters.protocol import WireResponse

_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
_PROFILES = "models are the profiles in this gateway's configuration"
_CLOUD_OFF = "ollama cloud is disabled: {} is unavailable"


def pull(listing: Listing, body: bytes) -> WireResponse:
    """A known model is here already: success. An unknown one cannot be had from a registry."""
    fields = read(body, "PullRequest")
    name = _name(fields)
    if not valid(name):
        raise BadRequest(INVALID, param="model")
    streams = fields.flag("stream") is not False
    card = listing.find_folded(name)
    if card is None:
        failure = "pull model manifest: file does not exist"
        return _progress([{"status": "pulling manifest"}], failure, streams=streams)
    digest = models.digest(card)
    layer = {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}"}
    size = max(card.size, 1)
    steps: list[dict[str, Any]] = [
        {"status": "pulling manifest"},
        {**layer, "total": size, "completed": size},
        {"status": "verifying sha256 digest"},
        {"status": "writing manifest"},
        {"status": "success"},
    ]
    return _progress(steps, None, streams=streams)


def push(listing: Listing, body: bytes) -> WireResponse:
    """There is nowhere to push to: the last line says so."""
    fields = read(body, "PushRequest")
    name = named(_name(fields), missing="model is required")
    known = listing.find_folded(name) is not None
    failure = f"push is not supported: {_PROFILES}" if known else f"model {quoted(name)} not found"
    return _progress([{"status": "retrieving manifest"}], failure, streams=fields.flag("stream") is not False)


def create(body: bytes) -> WireResponse:
    """Refused: a preset is a profile with a `base`."""
    fields = read(body, "CreateRequest")
    if not valid(_name(fields)):
        raise BadRequest(INVALID, param="model")
    raise Forbidden(f"creating models is not supported: {_PROFILES}; a preset is a profile with a base")


def copy(listing: Listing, body: bytes) -> WireResponse:
    """Refused: another name is an alias of a profile."""
    fields = read(body, "CopyRequest")
    source, destination = fields.string("source"), fields.string("destination")
    for word, name in (("source", source), ("destination", destination)):
        if not valid(name):
            raise BadRequest(f"{word} {quoted(name)} is invalid", param=word)
    models.find(listing, source)
    raise Forbidden(f"copying models is not supported: {_PROFILES}; another name is an alias there")


def delete(listing: Listing, body: bytes) -> WireResponse:
    """Refused for models that exist."""
    fields = read(body, "DeleteRequest")
    name = _name(fields)
    if not valid(name):
        raise BadRequest(f"name {quoted(name)} is invalid", param="model")
    models.find(listing, name)
    raise Forbidden(f"deleting models is not supported: {_PROFILES}")


def blob(digest: str) -> WireResponse:
    """Whether a file of this digest was uploaded: none ever is."""
    if not _DIGEST.fullmatch(digest):
        raise BadRequest("invalid digest format", param="digest")
    return models.respond({"error": f"blob {quoted(digest)} not found"}, status=404)


def upload(digest: str) -> WireResponse:
    """Refused: nothing is created from files."""
    if not _DIGEST.fullmatch(digest):
        raise BadRequest("invalid digest format", param="digest")
    raise Forbidden(f"uploading files is not supported: {_PROFILES}")


def account(kind: str) -> WireResponse:
    """Nobody is signed in to Ollama's cloud here."""
    if kind == "me":
        answer = {"error": "unauthorized", "signin_url": "https://ollama.com/connect"}
    else:
        answer = {"error": "you are not currently signed in"}
    return models.respond(answer, status=401)


def web(kind: str, body: bytes) -> WireResponse:
    """Searching and fetching are the cloud's."""
    read(body, "WebRequest")
    what = "web search" if kind == "search" else "web fetch"
    return models.respond({"error": _CLOUD_OFF.format(what)}, status=403)


def unknown_cloud() -> str:
    """What is said about a model that only the cloud could run."""
    return _CLOUD_OFF.format("remote model")


def _name(fields: Fields) -> str:
    # ollama-js says `name`.
    return fields.string("model") or fields.string("name")


def _progress(steps: list[dict[str, Any]], failure: str | None, *, streams: bool) -> WireResponse:
    if streams:
        lines = [*steps, {"error": failure}] if failure else steps
        return WireResponse(media_type=LINES, body=b"".join(gojson.line(entry) for entry in lines))
    if failure:
        return models.respond({"error": failure}, status=500)
    return models.respond(steps[-1])
