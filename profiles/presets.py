"""Presets: models that clients derive from others, with a name, a system prompt and sampling of their own. Values only."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_NAME = re.compile(rf"(?:{_PART}/){{0,2}}{_PART}(?::{_PART})?")

#: A sampling parameter; `stop` has several strings.
Parameter = bool | int | float | str | tuple[str, ...]


class PresetMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message that every conversation begins with."""

    role: str
    content: str = ""


class Preset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model derived from another one, `model`, whose engine serves it. With nothing else set it is a second name.

    `parameters` are Ollama's options. A request's own settings take precedence over all of it. A preset of the same
    name as its `model` adds to that profile. `parent` is the model that it was created from, `created_at` is in seconds
    since the epoch.
    """

    model: str
    system: str = ""
    parameters: Mapping[str, Parameter] = {}
    messages: tuple[PresetMessage, ...] = ()
    license: tuple[str, ...] = ()
    parent: str = ""
    created_at: float = msgspec.field(default=0.0, name="made_at")  # as in existing library files

    @property
    def changes_requests(self) -> bool:
        return bool(self.system or self.parameters or self.messages)


def inherit_preset(preset: Preset, base: Preset | None) -> Preset:
    """`preset` with missing values taken from `base`, the preset that it was created from."""
    if base is None:
        return preset
    return msgspec.structs.replace(
        preset,
        model=base.model,
        system=preset.system or base.system,
        parameters={**base.parameters, **preset.parameters},
        messages=preset.messages or base.messages,
        license=preset.license or base.license,
    )


def is_model_name(name: str) -> bool:
    """Whether clients may create a model of this name: `[host/][namespace/]model[:tag]`, safe as a path."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def is_digest(text: str) -> bool:
    """Whether this is `sha256:` and 64 hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None
