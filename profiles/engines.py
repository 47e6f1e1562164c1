"""Engines: the programs that run models, as written in a file and resolved. Values only."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from hostler.profiles.templates import (
    TemplateError,
    TemplateValue,
    TemplateWord,
    apply_macros,
    apply_macros_to_text,
    variables,
)

Meta = msgspec.Meta

EngineProtocol = Literal["llamacpp", "openai", "ollama", "anthropic"]
KeyHeader = Literal["bearer", "x-api-key", "none"]
Service = Literal[
    "chat", "completions", "embeddings", "rerank", "transcriptions", "translations", "speech", "images", "moderations"
]
EngineCapability = Literal["vision", "audio", "tools", "thinking", "insert"]
StopSignal = Literal["TERM", "INT", "QUIT", "HUP", "KILL"]
CommandTemplate = str | tuple[TemplateWord, ...]
Macro = str | tuple[str, ...]

#: What templates can contain besides macros.
VARIABLES: Mapping[str, str] = {
    "host": "the address to listen on",
    "port": "the port to listen on",
    "address": "host and port as in a URL",
    "key": "the key that requests will carry, new for each start",
    "name": "the profile's name",
    "model": "the model: its file or folder, or its name on the Hugging Face Hub; empty without one",
    "folder": "the folder of the model's file, or the model's folder; empty for a name",
    "parent": "the folder that the model's file or folder is in; empty for a name",
    "basename": "the name of the model's file or folder without the path",
    "hub": "the cache folder of the Hugging Face Hub",
    "mmproj": "the profile's projector file; empty without one",
    "draft": "the profile's draft model; empty without one",
    "context": "tokens of one conversation",
    "total_context": "context times parallel",
    "parallel": "conversations at the same time",
    "batch": "prompt tokens processed at once",
    "threads": "CPU threads; empty if the profile sets none",
    "gpu_layers": "layers on the GPU: 999 for `all`, empty for `auto` and if the profile sets none",
    "container": "a name for a container, the same for each start of the profile",
}


class ReadyRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """When an engine is ready to serve: as soon as everything that is given holds."""

    path: str | None = None
    """A path that answers when the engine is ready."""
    status: int | None = None
    """The status of `path` when the engine is ready. Default: any from 200 to 299."""
    log: str | None = None
    """A regular expression that a line of the engine's output matches when it is ready."""
    port: bool = False
    """Whether it is enough that the engine's port accepts connections."""


class StopRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How an engine is asked to exit: by a signal, or by a command."""

    signal: StopSignal = "TERM"
    """The signal that stops the engine; `stop_grace_s` later it is killed."""
    command: CommandTemplate = ()
    """A command that stops the engine, instead of the signal."""


class SleepRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How an engine is put to sleep, so that it frees its memory on GPUs, and is woken again."""

    path: str = "/sleep"
    """The path whose `POST` without a body puts the engine to sleep."""
    wake: str = "/wake_up"
    """The path whose `POST` without a body wakes it, and answers once it can serve."""
    keeps_weights: bool = True
    """Whether its weights stay in the machine's memory while it sleeps."""


class EngineEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An engine as written in a file. What is left out comes from `base`, else from the defaults of `Engine`.

    Without `base` and `command` the base is the preset of the same name.
    """

    base: str | UnsetType = UNSET
    """An engine or preset to inherit from; `macros` and `env` are merged. Left out: the preset of this name, unless
    there is a `command`."""
    command: CommandTemplate | UnsetType = UNSET
    """Program and arguments, with variables: a list, or one text that is split as a shell would. A list within the list
    is left out if one of its variables is empty. With `base: llama-server` a program without `${port}` gets
    llama-server's arguments."""
    macros: Mapping[str, Macro] | UnsetType = UNSET
    """Macros for this engine and its profiles."""
    env: Mapping[str, str] | UnsetType = UNSET
    """Environment variables of the engine, with variables and macros in their values."""
    cwd: str | UnsetType | None = UNSET
    """Working folder of the engine. Default: that of the supervisor."""
    ready: str | ReadyRules | UnsetType = UNSET
    """When the engine is ready: a path that answers with a status of success, or rules, all of which must hold."""
    protocol: EngineProtocol | UnsetType = UNSET
    """The protocol that the engine speaks. Requests in other protocols are translated."""
    prefix: str | UnsetType = UNSET
    """What the paths of the engine start with, before `/v1`."""
    key: KeyHeader | UnsetType = UNSET
    """How requests carry `${key}`, which is new for each start."""
    serves: tuple[Service, ...] | UnsetType = UNSET
    """The kinds of requests that the engine serves. A chat for an engine without chat is refused before anything is
    loaded."""
    capabilities: tuple[EngineCapability, ...] | UnsetType = UNSET
    """What the models of the engine can do, where no GGUF file says so."""
    listens: Literal["child", "anywhere"] | UnsetType = UNSET
    """Whether the listener must be a child of the supervisor. That of a container is not."""
    stop: StopRules | UnsetType = UNSET
    """How the engine is stopped. Left out: by SIGTERM."""
    sleep: SleepRules | UnsetType | None = UNSET
    """How the engine sleeps instead of being stopped for another model, where memory allows. Left out: it cannot sleep."""
    cleanup: CommandTemplate | UnsetType = UNSET
    """A command that removes what an earlier start left behind: run when the supervisor starts, before each start and
    after each end. It may fail."""
    model_name: str | UnsetType = UNSET
    """The model's name in requests to the engine."""
    watchdog_s: float | UnsetType | None = UNSET
    """Overrides `supervisor.watchdog_s`; `0` for programs that answer nothing while they work."""


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """A program that runs models, with inheritance and macros resolved.

    `llama_server`: it is called with the arguments of llama-server after `command`, and only loads GGUF files.
    """

    name: str
    command: tuple[TemplateWord, ...] = ()
    llama_server: bool = False
    env: Mapping[str, str] = {}
    cwd: str | None = None
    ready: ReadyRules = ReadyRules(port=True)
    protocol: EngineProtocol = "openai"
    prefix: str = ""
    key: KeyHeader = "bearer"
    serves: tuple[Service, ...] = ()
    capabilities: tuple[EngineCapability, ...] = ()
    listens: Literal["child", "anywhere"] = "child"
    stop: StopRules = StopRules()
    stop_command: tuple[TemplateWord, ...] = ()
    sleep: SleepRules | None = None
    cleanup: tuple[TemplateWord, ...] = ()
    model_name: str = "${name}"
    watchdog_s: float | None = None

    @property
    def needs_model(self) -> bool:
        """Whether its command names a model."""
        return self.llama_server or "model" in variables((*self.command, *self.env.values()))


class InvalidEngine(Exception):
    """An invalid engine or macro: `path` says where, `message` why and what to do instead."""

    def __init__(self, path: tuple[str, ...], message: str) -> None:
        super().__init__(path, message)
        self.path = path
        self.message = message


class EngineTable(msgspec.Struct, frozen=True, kw_only=True):
    """The engines that profiles can name. `default` is the engine of profiles that name none.

    `macros` are those of all engines together with those of each one, by its name.
    """

    engines: Mapping[str, Engine] = {}
    macros: Mapping[str, TemplateValue] = {}
    own_macros: Mapping[str, Mapping[str, TemplateValue]] = {}
    default: str | None = None

    def find(self, name: str | None) -> Engine | None:
        """The engine of that name, else the default one; `None` for a command line of llama-server."""
        return self.engines.get(name or self.default or "")

    def macros_of(self, name: str | None) -> Mapping[str, TemplateValue]:
        """The macros of the profiles of an engine."""
        return {**self.macros, **self.own_macros.get(name or self.default or "", {})}


def resolve_engines(
    entries: Mapping[str, EngineEntry],
    presets: Mapping[str, EngineEntry],
    macros: Mapping[str, Macro],
    *,
    default: str | None = None,
    errors: list[InvalidEngine],
) -> EngineTable:
    """The engines of a file and the presets. Invalid ones are left out and added to `errors`."""
    shared: dict[str, TemplateValue] = {}
    for name, value in macros.items():
        if name in VARIABLES:
            errors.append(InvalidEngine(("macros", name), "is the name of a variable; use another one"))
        else:
            shared[name] = value
    engines: dict[str, Engine] = {}
    own: dict[str, Mapping[str, TemplateValue]] = {}
    for name in (*presets, *entries):
        try:
            given = _inherited(name, entries, presets)
            own[name] = given.pop("macros", {})
            engines[name] = _engine(name, given, {**shared, **own[name]})
        except InvalidEngine as error:
            engines.pop(name, None)
            errors.append(error)
    return EngineTable(engines=engines, macros=shared, own_macros=own, default=default)


def _inherited(name: str, entries: Mapping[str, EngineEntry], presets: Mapping[str, EngineEntry]) -> dict[str, Any]:
    """The keys of an engine and of all its bases; `macros` and `env` of both are merged."""
    given: dict[str, Any] = {}
    seen: list[EngineEntry] = []
    entry = entries.get(name) or presets[name]
    where = name
    while True:
        if any(entry is other for other in seen):
            raise InvalidEngine(("engines", name, "base"), "circular inheritance")
        seen.append(entry)
        for key in entry.__struct_fields__:
            value = getattr(entry, key)
            if key == "base" or value is UNSET:
                continue
            given[key] = {**value, **given.get(key, {})} if key in ("macros", "env") else given.get(key, value)
        base = entry.base
        if base is UNSET:
            preset = presets.get(where)
            if entry.command is not UNSET or preset is None or preset is entry:
                return given
            entry = preset
            continue
        following = entries.get(base) if base != where else None
        following = following or presets.get(base)
        if following is None:
            known = ", ".join(sorted({*entries, *presets} - {name}))
            raise InvalidEngine(("engines", name, "base"), f"unknown engine {base}; engines are: {known}")
        entry, where = following, base


def _engine(name: str, given: dict[str, Any], macros: Mapping[str, TemplateValue]) -> Engine:
    values = dict(given)
    for key in ("command", "cleanup"):
        if key in values:
            values[key] = _words(name, key, values[key], macros)
    if isinstance(values.get("ready"), str):
        values["ready"] = ReadyRules(path=values["ready"])
    if "stop" in values:
        values["stop_command"] = _words(name, "stop", values["stop"].command, macros)
    if "env" in values:
        values["env"] = {key: _text(name, "env", text, macros) for key, text in values["env"].items()}
    if "model_name" in values:
        values["model_name"] = _text(name, "model_name", values["model_name"], macros)
    command = values.get("command", ())
    llama_server = values.get("protocol") == "llamacpp" and "port" not in variables(command)
    engine = Engine(name=name, llama_server=llama_server, **values)
    for key, message in _mistakes(engine):
        raise InvalidEngine(("engines", name, key), message)
    return engine


def _words(
    name: str, key: str, command: CommandTemplate, macros: Mapping[str, TemplateValue]
) -> tuple[TemplateWord, ...]:
    try:
        words = tuple(shlex.split(command)) if isinstance(command, str) else command
        return _known(apply_macros(words, macros))
    except ValueError as error:  # an open quote, or an unknown variable
        raise InvalidEngine(("engines", name, key), str(error)) from None


def _text(name: str, key: str, text: str, macros: Mapping[str, TemplateValue]) -> str:
    try:
        replaced = apply_macros_to_text(text, macros)
        _known((replaced,))
    except TemplateError as error:
        raise InvalidEngine(("engines", name, key), str(error)) from None
    return replaced


def _known(words: tuple[TemplateWord, ...]) -> tuple[TemplateWord, ...]:
    check_variables(words)
    return words


def check_variables(words: Sequence[TemplateWord]) -> None:
    """Raises `TemplateError` for a variable that does not exist."""
    for unknown in sorted(variables(words) - VARIABLES.keys()):
        raise TemplateError(f"${{{unknown}}} is neither a macro nor a variable; variables are: {', '.join(VARIABLES)}")


def _mistakes(engine: Engine) -> Iterator[tuple[str, str]]:
    """Keys and what is wrong with them."""
    if not engine.command:
        yield "command", "is missing: the program and its arguments"
    elif not engine.llama_server and "port" not in variables((*engine.command, *engine.env.values())):
        yield "command", "must pass on ${port}, the port on which the engine is expected"
    for key, path in (("prefix", engine.prefix), ("ready", engine.ready.path)):
        if path and not re.fullmatch(r"/[!-~]*", path):
            yield key, f"{path!r} is not a path: it must start with a slash"
    for path in () if engine.sleep is None else (engine.sleep.path, engine.sleep.wake):
        if not re.fullmatch(r"/[!-~]*", path):
            yield "sleep", f"{path!r} is not a path: it must start with a slash"
    if engine.prefix.endswith("/"):
        yield "prefix", "must not end with a slash"
    rules = engine.ready
    if rules.path is None and (rules.status is not None or (rules.log is None and not rules.port)):
        yield "ready", "needs a path, log or port: true"
    if rules.status is not None and not 100 <= rules.status <= 599:
        yield "ready", f"{rules.status} is not an HTTP status"
    try:
        re.compile(rules.log or "")
    except re.error as error:
        yield "ready", f"log is not a regular expression: {error}"
    if engine.watchdog_s is not None and engine.watchdog_s < 0:
        yield "watchdog_s", "must be at least 0"


def as_capabilities(engine: Engine) -> tuple[str, ...]:
    """What the engine's models can do, in the words of model files."""
    found = ["completion"] if not engine.serves or {"chat", "completions"} & {*engine.serves} else []
    found += ["embedding"] if "embeddings" in engine.serves else []
    found += [service for service in engine.serves if service not in ("chat", "completions", "embeddings")]
    return (*found, *engine.capabilities)
