"""Complete profiles from those of a file: what they inherit, macros, and the rules that each of them must obey."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from hostler.profiles.engines import EngineTable, check_variables
from hostler.profiles.schema import Profile, ProfileEntry, ProfileError, is_device_name, name_key
from hostler.profiles.sources import ModelSource, SourceError, is_hub_name
from hostler.profiles.templates import TemplateError, apply_macros, apply_macros_to_text

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/@-]{0,127}(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,79})?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: Profiles between one and the last of its bases, at most: all are looked up for each profile.
MAX_BASES = 32

_NOT_INHERITED = ("base", "aliases", "description", "default")

# Set by the supervisor for every engine, and the profile key to use instead (None: there is none).
_FLAGS: Mapping[str, str | None] = {
    "--host": None,
    "--port": None,
    "--reuse-port": None,
    "--api-key": None,
    "--api-key-file": None,
    "--api-prefix": None,
    "--slot-save-path": None,
    "--no-slots": None,
    "--alias": "aliases",
    "-a": "aliases",
    **dict.fromkeys(("-m", "--model", "-mu", "--model-url", "-hf", "-hfr", "--hf-repo", "-hff", "--hf-file"), "model"),
    **dict.fromkeys(("-c", "--ctx-size"), "context"),
    **dict.fromkeys(("-np", "--parallel"), "parallel"),
    **dict.fromkeys(("-b", "--batch-size"), "batch"),
    **dict.fromkeys(("-t", "--threads"), "threads"),
    **dict.fromkeys(("-ngl", "--gpu-layers", "--n-gpu-layers"), "gpu_layers"),
    **dict.fromkeys(("-cram", "--cache-ram"), "cache_ram_mib"),
    **dict.fromkeys(("--embedding", "--embeddings"), "embeddings"),
}
_VARIABLES: Mapping[str, str | None] = {
    "LLAMA_API_KEY": None,
    "LLAMA_ARG_HOST": None,
    "LLAMA_ARG_PORT": None,
    "LLAMA_ARG_MODEL": "model",
    "LLAMA_ARG_HF_REPO": "model",
    "LLAMA_ARG_ALIAS": "aliases",
    "LLAMA_ARG_CTX_SIZE": "context",
    "LLAMA_ARG_N_PARALLEL": "parallel",
}
_MINIMUM: Mapping[str, float] = {
    "context": 1,
    "parallel": 1,
    "batch": 1,
    "threads": 1,
    "gpu_layers": 0,
    "cache_ram_mib": -1,
    "ttl_s": 0,
    "start_timeout_s": 0.1,
    "drain_s": 0,
    "stop_grace_s": 0,
    "evict_cost": 0,
    "max_concurrent": 1,
    "max_waiting": 1,
    "first_byte_s": 0.1,
    "between_bytes_s": 0.1,
    "max_answer_s": 0.1,
}

_NO_ENGINES = EngineTable()


def resolve(
    entries: Mapping[str, ProfileEntry], errors: list[ProfileError] | None = None, engines: EngineTable | None = None
) -> tuple[Profile, ...]:
    """The complete profiles, in the order of `entries`. Raises `ProfileError` for the first invalid one.

    With `errors`, invalid profiles are left out and added to it instead, each with its first error.
    """
    found: list[ProfileError] = []
    profiles: list[Profile] = []
    for name in entries:
        try:
            profile = _complete(name, entries, engines or _NO_ENGINES)
            _check(profile)
            profiles.append(profile)
        except ProfileError as error:
            found.append(error)
    found += _name_errors(profiles)
    defaults = [profile.name for profile in profiles if profile.default]
    found += [
        ProfileError(name, "default", f"{defaults[0]} is already the default; only one profile can be")
        for name in defaults[1:]
    ]
    if errors is None and found:
        raise found[0]
    if errors is not None:
        errors += found
    invalid = {error.profile for error in found}
    return tuple(profile for profile in profiles if profile.name not in invalid)


def _complete(name: str, entries: Mapping[str, ProfileEntry], engines: EngineTable) -> Profile:
    given: dict[str, Any] = {}
    for level, ancestor in enumerate(_ancestry(name, entries)):
        entry = entries[ancestor]
        own = {key: value for key in entry.__struct_fields__ if (value := getattr(entry, key)) is not UNSET}
        if "model" in given:
            own.pop("sha256", None)
        for key, value in own.items():
            if key not in given and key != "base" and (level == 0 or key not in _NOT_INHERITED):
                given[key] = value
    engine = given["definition"] = engines.find(given.get("engine"))
    if "model" not in given:
        if engine is None or engine.needs_model:
            raise ProfileError(name, None, "needs model: (the file to run) or base: (a profile to inherit from)")
        given["model"] = ""
    if given.get("memory") is not None:
        given["memory"] = int(given["memory"])  # sent as JSON, which has no `Size`
    return _with_macros(Profile(name=name, **given), engines)


def _with_macros(profile: Profile, engines: EngineTable) -> Profile:
    """The profile with macros replaced. The engine's variables stay, and must exist."""
    macros = engines.macros_of(profile.engine)
    changes: dict[str, Any] = {}
    key = ""
    try:
        for key in ("model", "mmproj", "draft"):
            text = getattr(profile, key)
            if text is not None and "${" in text:
                changes[key] = apply_macros_to_text(text, macros)
        key = "args"
        if any("${" in word for word in profile.args):
            changes["args"] = apply_macros(profile.args, macros)
            check_variables(changes["args"])
        key = "env"
        if any("${" in text for text in profile.env.values()):
            changes["env"] = {name: apply_macros_to_text(text, macros) for name, text in profile.env.items()}
            check_variables((*changes["env"].values(),))
    except TemplateError as error:
        raise ProfileError(profile.name, key, str(error)) from None
    return msgspec.structs.replace(profile, **changes) if changes else profile


def _ancestry(name: str, entries: Mapping[str, ProfileEntry]) -> list[str]:
    """The profile, its base, the base's base and so on."""
    ancestry = [name]
    while (base := entries[ancestry[-1]].base) is not UNSET:
        if base not in entries:
            raise ProfileError(ancestry[-1], "base", f"unknown profile {base}{_suggestion(base, entries)}")
        if base in ancestry:
            cycle = " -> ".join([*ancestry[ancestry.index(base) :], base])
            raise ProfileError(ancestry[-1], "base", f"circular inheritance: {cycle}")
        if len(ancestry) > MAX_BASES:
            raise ProfileError(
                name, "base", f"inherits over more than {MAX_BASES} profiles; shorten the chain of base:"
            )
        ancestry.append(base)
    return ancestry


def _suggestion(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    if similar := difflib.get_close_matches(name, names, n=1):
        return f", did you mean {similar[0]}?"
    return f", known profiles: {', '.join(names)}" if len(names) <= 20 else ""


def _check(profile: Profile) -> None:
    _check_name(profile.name, profile, None)
    for alias in profile.aliases:
        _check_name(alias, profile, "aliases")
    for key, minimum in _MINIMUM.items():
        value = getattr(profile, key)
        if isinstance(value, int | float) and not value >= minimum:
            raise ProfileError(profile.name, key, f"must be at least {minimum}, got {value}")
    for device in profile.devices or ():
        if not is_device_name(device):
            raise ProfileError(profile.name, "devices", f"{device!r} is not a device: they are gpu0, gpu1 and so on")
    _check_source(profile)
    for path, message in profile.request.mistakes() if profile.request is not None else ():
        raise ProfileError(profile.name, ".".join(("request", *path)), message)
    engine = profile.definition
    for argument in profile.args if engine is None or engine.llama_server else ():
        flag = argument.partition("=")[0]
        if flag in _FLAGS:
            raise ProfileError(profile.name, "args", f"{flag} is set by the supervisor{_alternative(_FLAGS[flag])}")
    for variable, value in profile.env.items():
        if variable in _VARIABLES:
            message = f"{variable} is set by the supervisor{_alternative(_VARIABLES[variable])}"
            raise ProfileError(profile.name, "env", message)
        if not _VARIABLE.fullmatch(variable) or "\0" in value:
            raise ProfileError(profile.name, "env", f"{variable!r} is not a valid environment variable")


def _alternative(key: str | None) -> str:
    return f": use {key} instead" if key else ": leave it out"


def _check_source(profile: Profile) -> None:
    engine = profile.definition
    if not profile.model and engine is not None and not engine.needs_model:
        return
    if engine is not None and not engine.llama_server and is_hub_name(profile.model):
        return
    if profile.sha256 is not None and not _SHA256.fullmatch(profile.sha256):
        raise ProfileError(profile.name, "sha256", "must be 64 hexadecimal digits in lower case")
    try:
        source = ModelSource.parse(profile.model)
    except SourceError as error:
        raise ProfileError(profile.name, "model", str(error)) from None
    if source.kind == "https" and profile.sha256 is None:
        raise ProfileError(profile.name, "sha256", "is required for a model from a web address")


def _check_name(name: str, profile: Profile, key: str | None) -> None:
    segments = name.partition(":")[0].split("/")
    if not _NAME.fullmatch(name) or any(segment in ("", ".", "..") for segment in segments):
        raise ProfileError(
            profile.name,
            key,
            f"{name!r} is not a valid name: use at most 128 letters, digits and . _ - @ /, optionally followed by a :tag",
        )


def _name_errors(profiles: Iterable[Profile]) -> Iterator[ProfileError]:
    taken: dict[str, tuple[Profile, str]] = {}
    for profile in profiles:
        for name in (profile.name, *profile.aliases):
            key = "aliases" if name is not profile.name else None
            other, spelling = taken.setdefault(name_key(name), (profile, name))
            if other is not profile:
                owner = "a profile" if spelling == other.name else f"an alias of {other.name}"
                yield ProfileError(profile.name, key, f"the name {name} is taken: {spelling} is {owner}")
