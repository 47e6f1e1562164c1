"""What a client's own model adds to the one it was made of: a name, words in front, sampling. Values only."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_NAME = re.compile(rf"(?:{_PART}/){{0,2}}{_PART}(?::{_PART})?")

#: What a parameter may be: a number, a switch, a word, or several words (`stop`).
Parameter = bool | int | float | str | tuple[str, ...]


class PresetMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A turn that every conversation begins with."""

    role: str
    content: str = ""


class Preset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model made of another one, `model`, whose engine answers for it. With nothing else it is a second name.

    `parameters` are what Ollama calls options. What a request says itself goes before all of it. A preset of the same
    name as its `model` adds to that profile. `parent` is the model that it was created from, `made_at` is in seconds since
    the epoch.
    """

    model: str
    system: str = ""
    parameters: Mapping[str, Parameter] = {}
    messages: tuple[PresetMessage, ...] = ()
    license: tuple[str, ...] = ()
    parent: str = ""
    made_at: float = 0.0

    @property
    def speaks(self) -> bool:
        """Whether a request has to be changed for it."""
        return bool(self.system or self.parameters or self.messages)


def made_from(preset: Preset, base: Preset | None) -> Preset:
    """The preset as it is when it was made of another one: it has all that the other has and it does not say anew."""
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


def is_name(name: str) -> bool:
    """Whether a model could be made under this name: `[host/][namespace/]model[:tag]`; no step of it leads elsewhere."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def is_digest(text: str) -> bool:
    """Whether this names a file by its checksum: `sha256:` and 64 hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None
