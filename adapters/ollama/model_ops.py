"""Model operations decoded from Ollama's requests, and refusals of what only its cloud or registry can do."""

from __future__ import annotations

from typing import Any

import msgspec

from hostler.adapters.base import WireResponse
from hostler.adapters.canonical import CopyModel, CreateModel, DeleteModel, FindBlob, Origin, PullModel
from hostler.adapters.errors import BadRequest, Forbidden, GatewayError
from hostler.adapters.model_list import ModelList
from hostler.adapters.ollama import go_compat, models
from hostler.adapters.ollama.go_compat import Fields, decode_fields, quote
from hostler.adapters.ollama.names import INVALID, is_valid, new_name, require_name
from hostler.adapters.ollama.requests import decode_sampling
from hostler.adapters.ollama.schema import LINES
from hostler.profiles.presets import Parameter, Preset, PresetMessage, is_digest

_CLOUD_OFF = "ollama cloud is disabled: {} is unavailable"
_NO_REGISTRY = "push is not supported: models are the profiles in this gateway's configuration"
# Limits of what a preset adds to every conversation.
_MAX_MESSAGES = 200
_MAX_PRESET_BYTES = 128 * 1024


def decode_pull(origin: Origin) -> PullModel:
    fields = decode_fields(origin.body, "PullRequest")
    name = _name(fields)
    if not is_valid(name):
        raise BadRequest(INVALID, param="model")
    return PullModel(origin=origin, model=name, stream=fields.flag("stream") is not False)


def decode_copy(origin: Origin) -> CopyModel:
    fields = decode_fields(origin.body, "CopyRequest")
    source, destination = fields.string("source"), fields.string("destination")
    if not is_valid(source):
        raise BadRequest(f"source {quote(source)} is invalid", param="source")
    name = new_name(destination)
    if name is None:
        raise BadRequest(f"destination {quote(destination)} is invalid", param="destination")
    return CopyModel(origin=origin, model=source, destination=name)


def decode_create(origin: Origin) -> CreateModel:
    """Derive a model from another one or from uploaded files."""
    fields = decode_fields(origin.body, "CreateRequest")
    files = _files(fields, "files")
    name = new_name(_name(fields))
    if name is None:
        raise BadRequest(INVALID, param="model")
    base = fields.string("from")
    if base and not is_valid(base):
        raise BadRequest(INVALID, param="from")
    if fields.has("files") and not files and not base:
        raise BadRequest("unknown type", param="files")
    if fields.string("quantize") or fields.string("quantization"):
        raise Forbidden("quantize is not supported: upload a file that is quantized already")
    if fields.mapping("adapters", "map[string]string"):
        raise Forbidden("adapters are not supported: add --lora to the args of a profile in the configuration")
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
        messages=tuple(_messages(fields)),
        license=_license(fields.any("license")),
    )
    if len(msgspec.json.encode(preset)) > _MAX_PRESET_BYTES:
        raise BadRequest(f"system, messages, parameters and license are limited to {_MAX_PRESET_BYTES} bytes in total")
    return CreateModel(
        origin=origin,
        model=name,
        preset=preset,
        files=files,
        context=context,
        template=fields.string("template"),
        stream=fields.flag("stream") is not False,
    )


def decode_delete(origin: Origin) -> DeleteModel:
    fields = decode_fields(origin.body, "DeleteRequest")
    name = _name(fields)
    if not is_valid(name):
        raise BadRequest(f"name {quote(name)} is invalid", param="model")
    return DeleteModel(origin=origin, model=name)


def decode_blob(origin: Origin, digest: str) -> FindBlob:
    if not is_digest(digest):
        raise BadRequest("invalid digest format", param="digest")
    return FindBlob(origin=origin, digest=digest)


def push(listing: ModelList, body: bytes) -> WireResponse:
    """Always an error, on the last line: there is no registry."""
    fields = decode_fields(body, "PushRequest")
    name = require_name(_name(fields), missing="model is required")
    known = listing.resolve(name) is not None
    failure = _NO_REGISTRY if known else f"model {quote(name)} not found"
    if fields.flag("stream") is False:
        return models.respond({"error": failure}, status=500)
    lines = [{"status": "retrieving manifest"}, {"error": failure}]
    return WireResponse(media_type=LINES, body=b"".join(go_compat.encode_line(entry) for entry in lines))


def account_info(kind: str) -> WireResponse:
    """The response without a sign-in to Ollama's cloud."""
    if kind == "me":
        body = {"error": "unauthorized", "signin_url": "https://ollama.com/connect"}
    else:
        body = {"error": "you are not currently signed in"}
    return models.respond(body, status=401)


def web_search(kind: str, body: bytes) -> WireResponse:
    """Refused: only Ollama's cloud does it."""
    decode_fields(body, "WebRequest")
    feature = "web search" if kind == "search" else "web fetch"
    return models.respond({"error": _CLOUD_OFF.format(feature)}, status=403)


def cloud_disabled() -> str:
    """The error for a model that only Ollama's cloud runs."""
    return _CLOUD_OFF.format("remote model")


def _name(fields: Fields) -> str:
    # ollama-js sends `name`.
    return fields.string("model") or fields.string("name")


def _files(fields: Fields, name: str) -> dict[str, str]:
    """File names and checksums. The names are unused; those that lead out of the folder are rejected, as in Ollama."""
    files: dict[str, str] = {}
    for file, digest in fields.mapping(name, "map[string]string").items():
        segments = file.split("/")
        if (
            not file
            or any(segment in ("", ".", "..") for segment in segments)
            or "\\" in file
            or not file.isprintable()
        ):
            raise BadRequest("file path must be relative", param=name)
        if not isinstance(digest, str) or not is_digest(digest):
            raise BadRequest("invalid digest format", param=name)
        files[file] = digest.replace("-", ":", 1).lower()
    return files


def _parameters(fields: Fields) -> dict[str, Any]:
    given = {name: value for name, value in fields.mapping("parameters").items() if value is not None}
    try:
        decode_sampling(given)
        return {name: msgspec.convert(value, Parameter) for name, value in given.items()}
    except msgspec.ValidationError:
        raise BadRequest(
            "parameters must be numbers, booleans, strings or lists of strings", param="parameters"
        ) from None
    except BadRequest:
        raise
    except GatewayError as error:
        raise BadRequest(error.message, param="parameters") from None


def _messages(fields: Fields) -> list[PresetMessage]:
    messages = [
        PresetMessage(role=message.string("role").lower(), content=message.string("content"))
        for message in fields.each("messages", "Message")
    ]
    if len(messages) > _MAX_MESSAGES:
        raise BadRequest(f"more than {_MAX_MESSAGES} messages", param="messages")
    for message in messages:
        if message.role not in ("system", "user", "assistant"):
            raise BadRequest(f"messages cannot have the role {quote(message.role[:50])}", param="messages")
    return messages


def _license(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list):
        raise BadRequest(f"unknown license type: {go_compat.kind_of(value)}", param="license")
    for text in texts:
        if not isinstance(text, str):
            raise BadRequest(f"json: cannot unmarshal {go_compat.kind_of(text)} into Go value of type string")
    return tuple(text for text in texts if text)
