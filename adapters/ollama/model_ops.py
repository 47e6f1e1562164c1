"""Orders about which models there are, read from their bodies; and what only Ollama's cloud or registry could do, refused."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.base import WireResponse
from hostler.adapters.errors import BadRequest, Forbidden, GatewayError
from hostler.adapters.model_list import ModelList
from hostler.adapters.ollama import go_compat, models
from hostler.adapters.ollama.go_compat import Fields, quoted, read
from hostler.adapters.ollama.names import INVALID, made, named, valid
from hostler.adapters.ollama.requests import sampling
from hostler.adapters.ollama.schema import LINES
from hostler.adapters.types import CopyModel, CreateModel, DeleteModel, FindBlob, Origin, PullModel
from hostler.profiles.presets import Parameter, Preset, PresetMessage, is_digest

_CLOUD_OFF = "ollama cloud is disabled: {} is unavailable"
_NO_REGISTRY = "push is not supported: models are the profiles in this gateway's configuration"
# More than anybody puts in front of every conversation; each request carries it.
_MOST_TURNS = 200
_LONGEST_TEXT = 128 * 1024


def pull(origin: Origin) -> PullModel:
    """Have a model's file come."""
    fields = read(origin.body, "PullRequest")
    name = _name(fields)
    if not valid(name):
        raise BadRequest(INVALID, param="model")
    return PullModel(origin=origin, model=name, stream=fields.flag("stream") is not False)


def copy(origin: Origin) -> CopyModel:
    """A second name for a model."""
    fields = read(origin.body, "CopyRequest")
    source, destination = fields.string("source"), fields.string("destination")
    if not valid(source):
        raise BadRequest(f"source {quoted(source)} is invalid", param="source")
    name = made(destination)
    if name is None:
        raise BadRequest(f"destination {quoted(destination)} is invalid", param="destination")
    return CopyModel(origin=origin, model=source, destination=name)


def create(origin: Origin) -> CreateModel:
    """A model of another one or of uploaded files, with what is to be said in front of it."""
    fields = read(origin.body, "CreateRequest")
    files = _files(fields, "files")
    name = made(_name(fields))
    if name is None:
        raise BadRequest(INVALID, param="model")
    base = fields.string("from")
    if base and not valid(base):
        raise BadRequest(INVALID, param="from")
    if fields.has("files") and not files and not base:
        raise BadRequest("unknown type", param="files")
    if fields.string("quantize") or fields.string("quantization"):
        raise Forbidden("quantize is not supported: give a file that is quantized already")
    if fields.mapping("adapters", "map[string]string"):
        raise Forbidden(
            "adapters are not supported: give a profile in the configuration the engine's --lora among its args"
        )
    if fields.string("remote_host"):
        raise Forbidden(_CLOUD_OFF.format("remote model"))
    parameters = _parameters(fields)
    context = parameters.pop("num_ctx", None)
    if context is not None and (isinstance(context, bool) or not isinstance(context, int) or context < 1):
        raise BadRequest('option "num_ctx" must be of type integer', param="parameters")
    preset = Preset(
        model=base,
        system=fields.string("system"),
        parameters=parameters,
        messages=tuple(_turns(fields)),
        license=_license(fields.any("license")),
    )
    if len(msgspec.json.encode(preset)) > _LONGEST_TEXT:
        raise BadRequest(f"all that a model says may have {_LONGEST_TEXT} bytes together")
    return CreateModel(
        origin=origin,
        model=name,
        preset=preset,
        files=files,
        context=context,
        template=fields.string("template"),
        stream=fields.flag("stream") is not False,
    )


def delete(origin: Origin) -> DeleteModel:
    """Forget a model."""
    fields = read(origin.body, "DeleteRequest")
    name = _name(fields)
    if not valid(name):
        raise BadRequest(f"name {quoted(name)} is invalid", param="model")
    return DeleteModel(origin=origin, model=name)


def blob(origin: Origin, digest: str) -> FindBlob:
    """Whether a file of this digest was uploaded."""
    if not is_digest(digest):
        raise BadRequest("invalid digest format", param="digest")
    return FindBlob(origin=origin, digest=digest)


def push(listing: ModelList, body: bytes) -> WireResponse:
    """There is nowhere to push to: the last line says so."""
    fields = read(body, "PushRequest")
    name = named(_name(fields), missing="model is required")
    known = listing.resolve(name) is not None
    failure = _NO_REGISTRY if known else f"model {quoted(name)} not found"
    if fields.flag("stream") is False:
        return models.respond({"error": failure}, status=500)
    lines = [{"status": "retrieving manifest"}, {"error": failure}]
    return WireResponse(media_type=LINES, body=b"".join(go_compat.line(entry) for entry in lines))


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


def _files(fields: Fields, name: str) -> dict[str, str]:
    """Names of files with their checksums. The names are told to nobody, but a path that leads elsewhere is no name."""
    files: dict[str, str] = {}
    for file, digest in fields.mapping(name, "map[string]string").items():
        steps = file.split("/")
        if not file or any(step in ("", ".", "..") for step in steps) or "\\" in file or not file.isprintable():
            raise BadRequest("file path must be relative", param=name)
        if not isinstance(digest, str) or not is_digest(digest):
            raise BadRequest("invalid digest format", param=name)
        files[file] = digest.replace("-", ":", 1).lower()
    return files


def _parameters(fields: Fields) -> dict[str, Any]:
    given = {name: value for name, value in fields.mapping("parameters").items() if value is not None}
    try:
        sampling(given)
        return {name: msgspec.convert(value, Parameter) for name, value in given.items()}
    except msgspec.ValidationError:
        raise BadRequest("parameters must be numbers, switches, words or lists of words", param="parameters") from None
    except BadRequest:
        raise
    except GatewayError as error:
        raise BadRequest(error.message, param="parameters") from None


def _turns(fields: Fields) -> list[PresetMessage]:
    turns = [
        PresetMessage(role=each.string("role").lower(), content=each.string("content"))
        for each in fields.each("messages", "Message")
    ]
    if len(turns) > _MOST_TURNS:
        raise BadRequest(f"messages may be {_MOST_TURNS}", param="messages")
    for turn in turns:
        if turn.role not in ("system", "user", "assistant"):
            raise BadRequest(f"messages cannot be from {quoted(turn.role[:50])}", param="messages")
    return turns


def _license(given: object) -> tuple[str, ...]:
    texts = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(texts, list):
        raise BadRequest(f"unknown license type: {go_compat.described(given)}", param="license")
    for text in texts:
        if not isinstance(text, str):
            raise BadRequest(f"json: cannot unmarshal {go_compat.described(text)} into Go value of type string")
    return tuple(text for text in texts if text)
