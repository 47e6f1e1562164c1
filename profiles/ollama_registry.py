"""Models of Ollama's registry: a manifest names the blobs of the model, its projector, parameters and licence.

Blocks: runs in a thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

from hostler.profiles.downloads import Cancellation
from hostler.profiles.hub_reference import HubReference
from hostler.profiles.presets import Parameter
from hostler.profiles.sources import SourceError

_MANIFEST_TYPE: Final = "application/vnd.docker.distribution.manifest.v2+json"
_LAYER_TYPE: Final = "application/vnd.ollama.image."
_MAX_MANIFEST: Final = 1024 * 1024
#: A text layer: the longest licences have some 50 kB.
_MAX_TEXT: Final = 1024 * 1024
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class _Layer(msgspec.Struct, frozen=True):
    mediaType: str
    digest: str
    size: int = 0


class _Manifest(msgspec.Struct, frozen=True):
    layers: tuple[_Layer, ...] = ()


class RegistryFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a model: its address, and the checksum that it must have."""

    url: str
    sha256: str
    size: int


class RegistryModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model as its manifest describes it. `template` is Ollama's, which engines do not use."""

    model: RegistryFile
    projector: RegistryFile | None = None
    system: str = ""
    template: str = ""
    parameters: Mapping[str, Parameter] = {}
    licenses: tuple[str, ...] = ()


def registry_url(environ: Mapping[str, str] = os.environ) -> str:
    """The registry's address: `HOSTLER_OLLAMA_REGISTRY`, else Ollama's own."""
    return (environ.get("HOSTLER_OLLAMA_REGISTRY") or "https://registry.ollama.ai").rstrip("/")


def read_registry_model(reference: HubReference, cancellation: Cancellation) -> RegistryModel:
    """What the registry has under this name. Raises `SourceError`."""
    from hostler.profiles.http_download import WebAnswer, read_page, read_start  # 0.2 s: httpx

    base = f"{registry_url()}/v2/{reference.repository}"
    try:
        body, _ = read_page(
            f"{base}/manifests/{quote(reference.tag)}", {"Accept": _MANIFEST_TYPE}, cancellation, limit=_MAX_MANIFEST
        )
        layers = _layers(body)
        texts = {
            layer: read_start(f"{base}/blobs/{layer.digest}", {}, _MAX_TEXT, cancellation).decode("utf-8", "replace")
            for layer in layers
            if _kind(layer) in ("system", "template", "params", "license")
        }
    except WebAnswer as answer:
        if answer.status == 404:
            raise SourceError(f"Ollama's registry has no model {reference.name}") from None
        raise answer.error from None

    def files(kind: str) -> list[RegistryFile]:
        found = [layer for layer in layers if _kind(layer) == kind]
        return [
            RegistryFile(url=f"{base}/blobs/{each.digest}", sha256=each.digest[7:], size=each.size) for each in found
        ]

    def text(kind: str) -> list[str]:
        return [content for layer, content in texts.items() if _kind(layer) == kind]

    if len(files("model")) != 1:
        raise SourceError(
            f"{reference.name} is no model in one GGUF file; Ollama's registry may have it for its cloud only"
        )
    return RegistryModel(
        model=files("model")[0],
        projector=next(iter(files("projector")), None),
        system="\n".join(text("system")),
        template="\n".join(text("template")),
        parameters=_parameters(text("params")),
        licenses=tuple(text("license")),
    )


def _layers(body: bytes) -> tuple[_Layer, ...]:
    try:
        layers = msgspec.json.decode(body, type=_Manifest).layers
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{registry_url()} does not answer like Ollama's registry: {error}") from None
    if not all(_DIGEST.fullmatch(layer.digest) for layer in layers):
        raise SourceError(f"{registry_url()} names a file without its checksum")
    return layers


def _kind(layer: _Layer) -> str:
    return layer.mediaType.removeprefix(_LAYER_TYPE)


def _parameters(texts: list[str]) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for text in texts:
        try:
            values = msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.DecodeError:
            continue
        for name, value in values.items():
            if isinstance(value, list):
                found[name] = tuple(str(each) for each in value)
            elif isinstance(value, bool | int | float | str):
                found[name] = value
    return found
