"""What a client's own model adds to the one it was made of: a name, words in front, sampling. Values only."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

#: What a parameter may be: a number, a switch, a word, or several words (`stop`).
Parameter = bool | int | float | str | tuple[str, ...]


class Turn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A turn that every conversation begins with."""

    role: str
    content: str = ""


class Preset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model made of another one, `model`, whose engine answers for it. With nothing else it is a second name.

    `parameters` are what Ollama calls options. What a request says itself goes before all of it. A preset of the same
    name as its `model` adds to that profile. `made_at` is in seconds since the epoch.
    """

    model: str
    system: str = ""
    parameters: Mapping[str, Parameter] = {}
    messages: tuple[Turn, ...] = ()
    license: tuple[str, ...] = ()
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
