"""The models of llama-swap: commands of llama-server become profiles, other commands engines with a profile."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, Final

from hostler.gateway.importing.llama_command import is_llama_server, read_arguments
from hostler.gateway.importing.llama_swap_macros import UnknownMacro, expand
from hostler.gateway.importing.llama_swap_ports import PORT, port_option, proxy_address, with_variable
from hostler.gateway.importing.report import FactsOf, ImportReport, ProfileNames, as_template, plain_name
from hostler.gateway.importing.request_filters import as_rules
from hostler.gateway.importing.yaml_source import YamlSource, is_number
from hostler.profiles.templates import variables

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "0.0.0.0", "::1", ""})
_CONTAINERS: Final = frozenset({"docker", "podman", "nerdctl"})
#: Programs that run the one that follows.
_WRAPPERS: Final = frozenset({"env", "nice", "ionice", "taskset", "numactl", "stdbuf", "nohup", "chrt", "setsid"})
_TIMEOUTS: Final = frozenset({"connect", "keepalive", "responseHeader", "tlsHandshake", "idleConn"})
#: What connections do without a setting.
CONNECTION_NOTES: Final[Mapping[str, str]] = {
    "keepalive": "connections that are lost are noticed by health checks and by gateway.timeouts.between_bytes_s",
    "idleConn": "idle connections are kept as long as the server allows, and replaced when they are closed",
    "tlsHandshake": "is part of connect_s",
}


class SwapModels:
    """Adds each model to the report's profiles, engines and variants. `names` maps their IDs to the names here."""

    def __init__(
        self,
        source: YamlSource,
        report: ImportReport,
        macros: Mapping[str, Any],
        path_of: Callable[[str], str],
        facts_of: FactsOf,
    ) -> None:
        self.names: dict[str, str] = {}
        self.connect_s: list[float] = []
        self._source = source
        self._report = report
        self._macros = macros
        self._path_of = path_of
        self._facts_of = facts_of
        self._taken = ProfileNames(report)
        self._engines: dict[tuple[str, ...], str] = {}

    def add_all(self, default_ttl: float | None) -> None:
        """Add all models; those that cannot be translated are noted."""
        models = self._source.mapping("models")
        for name in models:
            self.names[name] = self._taken.claim(self._line(name), f"models.{name}", name)
        for name in models:
            try:
                self._add(name, default_ttl)
            except UnknownMacro as error:
                del self.names[name]
                self._report.missing(self._line(name), f"models.{name}", f"not taken over: {error}")

    def _line(self, name: str, *path: str) -> int | None:
        return self._source.line("models", name, *path)

    def _note(self, kind: str, name: str, key: str, text: str = "") -> None:
        add = {"taken": self._report.taken, "changed": self._report.changed, "missing": self._report.missing}[kind]
        add(self._line(name, *key.split(".")), f"models.{name}.{key}", text)

    def _add(self, name: str, default_ttl: float | None) -> None:
        given = dict(self._source.mapping("models", name))
        own = self._source.mapping("models", name, "macros")
        macros = {**self._macros, **own, "MODEL_ID": name, "PORT": PORT, "PID": "${pid}"}
        if "macros" in given:
            self._note("taken", name, "macros", "written out where they are used")
        for key in ("cmd", "cmdStop"):  # a macro in a comment may have several lines
            if isinstance(given.get(key), str):
                given[key] = _without_comments(given[key])
        given = expand({key: value for key, value in given.items() if key != "macros"}, macros)
        _check_variables([given.get("cmd"), given.get("cmdStop"), *_entries(given.get("env"))])
        profile = self._command(name, given)
        if profile is None:
            del self.names[name]
            return
        if default_ttl and "ttl" not in given:
            profile["ttl_s"] = default_ttl
        for key, value in given.items():
            if key not in _COMMAND_KEYS:
                self._setting(name, key, value, profile, default_ttl)
        self._report.set("profiles", self.names[name], value=profile)

    def _command(self, name: str, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """The profile of the model's command; `None` with a note if there can be none."""
        text = given.get("cmd")
        if not isinstance(text, str) or not text.strip():
            self._note("missing", name, "cmd", "there is no command; the model is not taken over")
            return None
        try:
            words = _words(text)
        except ValueError as error:
            self._note("missing", name, "cmd", f"cannot be split into words: {error}; the model is not taken over")
            return None
        env = self._environment(name, given.get("env"))
        program = _program_at(words)
        if program is not None:
            profile = self._llama_server(name, words[: program + 1], words[program + 1 :], env, given)
            if profile is not None:
                return profile
        return self._engine(name, words, env, given)

    def _environment(self, name: str, given: Any) -> dict[str, str]:
        found: dict[str, str] = {}
        for index, entry in enumerate(_entries(given)):
            variable, equals, value = str(entry).partition("=")
            if equals and re.fullmatch(r"[A-Za-z_]\w*", variable):
                found[variable] = value
            else:
                self._note("missing", name, "env", f"entry {index + 1} is not of the form NAME=value")
        if found:
            self._note("taken", name, "env")
        return found

    def _llama_server(
        self, name: str, program: list[str], arguments: list[str], env: dict[str, str], given: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        command = read_arguments(arguments, env, path_of=self._path_of, facts_of=self._facts_of)
        if "model" not in command.profile:
            return None
        profile = dict(command.profile)
        aliases = profile.pop("aliases", [])
        if free := [each for alias in aliases if (each := self._alias(name, "cmd", alias))]:
            profile["aliases"] = free
        if command.env:
            profile["env"] = dict(command.env)
        if program != ["llama-server"]:
            profile["engine"] = self._program_engine(program)
        self._note("taken", name, "cmd", f"a profile with the model {PurePath(profile['model']).name}")
        for change in command.changes:
            self._note("changed", name, "cmd", change)
        self._local_proxy(name, given)
        if "checkEndpoint" in given:
            same = given["checkEndpoint"] == "/health"
            text = "llama-server is asked at /health"
            self._note("taken" if same else "changed", name, "checkEndpoint", text)
        if "cmdStop" in given:
            self._note("changed", name, "cmdStop", "llama-server is stopped by a signal")
        if "useModelName" in given:
            self._note("changed", name, "useModelName", "llama-server serves its model under every name")
        return profile

    def _local_proxy(self, name: str, given: Mapping[str, Any]) -> None:
        if "proxy" not in given:
            return
        host = proxy_address(given["proxy"])[0]
        if host in _LOOPBACK:
            self._note("changed", name, "proxy", "the supervisor chooses the port")
        else:
            self._note("missing", name, "proxy", "engines run on this machine; use a backend for another one")

    def _program_engine(self, program: list[str]) -> str:
        """The engine of a llama-server at another place, one for all of its models."""
        known = self._engines.get(tuple(program))
        if known is None:
            known = self._free_engine(re.sub(r"\.exe$", "", re.split(r"[/\\]", program[-1])[-1]))
            self._engines[tuple(program)] = known
            self._report.set("engines", known, value={"base": "llama-server", "command": program})
        return known

    def _free_engine(self, wanted: str) -> str:
        engines = self._report.sections.get("engines", {})
        base = plain_name(wanted).replace("/", "-").replace(":", "-").replace("@", "-")
        base = f"{base}-imported" if base == "llama-server" else base
        name, number = base, 2
        while name in engines:
            name, number = f"{base}-{number}", number + 1
        return name

    def _engine(
        self, name: str, words: list[str], env: dict[str, str], given: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """An engine of its own for any other command."""
        host, port, prefix = proxy_address(given.get("proxy", f"http://localhost:{PORT}"))
        if host not in _LOOPBACK:
            text = f"is on another machine; add {host} as a backend. The model is not taken over"
            self._note("missing", name, "proxy", text)
            return None
        if port != PORT and port:
            words = [with_variable(word, port) for word in words]
            env = {key: with_variable(value, port) for key, value in env.items()}
        if not any(PORT in each for each in (*words, *env.values())) and (own := port_option(words)):
            words = [with_variable(word, own) for word in words]
            self._note("changed", name, "cmd", f"the supervisor chooses the port instead of {own}")
        if not any(PORT in each for each in (*words, *env.values())):
            text = "passes no port on, so that the engine would not be found; the model is not taken over"
            self._note("missing", name, "cmd", text)
            return None
        engine: dict[str, Any] = {"command": [as_template(word) for word in words], "protocol": "openai", "key": "none"}
        if re.split(r"[/\\]", words[0])[-1] in _CONTAINERS:
            engine["listens"] = "anywhere"
        if env:
            engine["env"] = {key: as_template(value) for key, value in env.items()}
        if prefix:
            engine["prefix"] = prefix
        engine["ready"] = self._readiness(name, given)
        if stop := self._stop(name, given):
            engine["stop"] = {"command": [as_template(word) for word in stop]}
        if model_name := given.get("useModelName"):
            engine["model_name"] = str(model_name)
            self._note("taken", name, "useModelName", "model_name of the engine")
        engine_name = self._free_engine(self.names[name])
        self._report.set("engines", engine_name, value=engine)
        self._note("taken", name, "cmd", f"the engine {engine_name}")
        if "proxy" in given:
            fixed = port != PORT
            text = f"the supervisor chooses the port instead of {port}" if fixed else "the engine's port"
            self._note("changed" if fixed else "taken", name, "proxy", text)
        return {"engine": engine_name}

    def _readiness(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        path = given.get("checkEndpoint", "/health")
        if "checkEndpoint" in given:
            self._note("taken", name, "checkEndpoint", "ready of the engine")
        if isinstance(path, str) and re.fullmatch(r"/[!-~]*", path):
            return {"path": path, "status": 200}
        return {"port": True}

    def _stop(self, name: str, given: Mapping[str, Any]) -> list[str]:
        text = given.get("cmdStop")
        if not isinstance(text, str) or not text.strip():
            return []
        try:
            words = _words(text)
        except ValueError as error:
            self._note("missing", name, "cmdStop", f"cannot be split into words: {error}")
            return []
        if any("${pid}" in word for word in words):
            self._note(
                "missing", name, "cmdStop", "engines are stopped by a signal, not by a command with their number"
            )
            return []
        self._note("taken", name, "cmdStop", "stop of the engine")
        return words

    def _alias(self, name: str, key: str, alias: str) -> str | None:
        return self._taken.claim_alias(self._line(name, *key.split(".")), f"models.{name}.{key}", alias)

    def _setting(self, name: str, key: str, value: Any, profile: dict[str, Any], default_ttl: float | None) -> None:
        match key, value:
            case "name", str():
                about = profile.get("description", "")
                profile["description"] = f"{value}: {about}" if about else value
                self._note("taken", name, key, "at the start of the description")
            case "description", str():
                title = profile.get("description", "")
                profile["description"] = f"{title}: {value}" if title else value
                self._note("taken", name, key)
            case "ttl", int() | float() if is_number(value, -1):
                seconds = default_ttl if value < 0 else value
                if seconds:
                    profile["ttl_s"] = seconds
                self._note("taken", name, key, "" if seconds else "never unloaded")
            case "unlisted", bool():
                profile["listed"] = not value
                self._note("taken", name, key)
            case "concurrencyLimit", int() if is_number(value, -1):
                if value > 0:
                    profile["max_concurrent"] = value
                    self._note("changed", name, key, "further requests wait in the queue instead of getting 429")
                else:
                    self._note("taken", name, key)
            case "aliases", list():
                self._aliases(name, value, profile)
            case "filters", dict():
                self._filters(name, value, profile)
            case "timeouts", dict():
                self._timeouts(name, value, profile)
            case "metadata", dict():
                plain, ports = _without_ports(value)
                if plain:
                    profile["metadata"] = plain
                text = "engines get another port at each start; what names it is left out"
                self._note("changed" if ports else "taken", name, key, text if ports else "metadata of the profile")
            case "unloadTimeout", int() | float() if is_number(value):
                if value:
                    profile["stop_grace_s"] = float(value)
                self._note("taken", name, key, "stop_grace_s of the profile" if value else "")
            case "capabilities", dict():
                self._capabilities(name, value, profile)
            case "compat", dict():
                self._note("missing", name, key, "WebSocket connections load their model, and keep it loaded")
            case "sendLoadingState", bool():
                profile["progress"] = "thinking" if value else "quiet"
                self._note("taken", name, key, "progress of the profile")
            case _:
                self._note("missing", name, key, "is unknown, or has a value of the wrong kind")

    def _capabilities(self, name: str, given: dict[str, Any], profile: dict[str, Any]) -> None:
        """Engines of their own say what their models can do; of a GGUF file, its header says it."""
        engine = self._report.sections.get("engines", {}).get(profile.get("engine"))
        if "model" in profile or engine is None:
            self._note("changed", name, "capabilities", "what a model can do is read from its file")
            return
        listed = given.get("in")
        inputs = listed if isinstance(listed, list) else []
        found = [own for theirs, own in (("image", "vision"), ("audio", "audio")) if theirs in inputs]
        found += ["tools"] if given.get("tools") is True else []
        if found:
            engine["capabilities"] = found
        if given.get("reranker") is True:
            engine["serves"] = ["rerank"]
        if isinstance(context := given.get("context"), int) and context > 0:
            profile["context"] = context
        self._note("taken", name, "capabilities", "capabilities of the engine")

    def _aliases(self, name: str, entries: list[Any], profile: dict[str, Any]) -> None:
        aliases = profile.setdefault("aliases", [])
        for entry in entries:
            alias = entry.get("id") if isinstance(entry, dict) else entry
            if not isinstance(alias, str):
                self._note("missing", name, "aliases", "an entry has no id")
                continue
            if found := self._alias(name, "aliases", alias):
                aliases.append(found)
            if isinstance(entry, dict) and entry.get("name", alias) != alias:
                self._note("changed", name, "aliases.name", "an alias is shown by its ID")
        self._note("taken", name, "aliases")

    def _filters(self, name: str, filters: dict[str, Any], profile: dict[str, Any]) -> None:
        dropped, forced = filter_values(filters)
        by_name = filters.get("setParamsByID")
        for target, params in (by_name if isinstance(by_name, dict) else {}).items():
            if not isinstance(params, dict):
                self._note("missing", name, "filters.setParamsByID", f"{target} has no parameters")
            elif target == name:
                forced = {**forced, **params}
            elif alias := self._variant_name(name, target, profile):
                rules, refused = as_rules(force=params)
                self._refused(name, refused)
                self._report.set("variants", alias, value={"model": self.names[name], "request": rules})
        rules, refused = as_rules(drop=dropped, force=forced)
        if rules:
            profile["request"] = rules
        for key in filters:
            known = key in ("stripParams", "setParams", "setParamsByID")
            text = "variants" if key == "setParamsByID" else "request"
            self._note("taken" if known else "missing", name, f"filters.{key}", text if known else "is unknown")
        self._refused(name, refused)

    def _refused(self, name: str, parameters: list[str]) -> None:
        for each in parameters:
            self._note("missing", name, "filters", f"{each} cannot be changed by a rule")

    def _variant_name(self, name: str, target: str, profile: dict[str, Any]) -> str | None:
        """A free name for a variant; an alias that it stands for becomes one."""
        plain = plain_name(target)
        if plain in profile.get("aliases", ()):
            profile["aliases"].remove(plain)
            return plain
        return self._alias(name, "filters.setParamsByID", target)

    def _timeouts(self, name: str, timeouts: dict[str, Any], profile: dict[str, Any]) -> None:
        for key, value in timeouts.items():
            seconds = value if is_number(value) else None
            if key not in _TIMEOUTS or seconds is None:
                self._note("missing", name, f"timeouts.{key}", "is unknown, or no number of seconds")
            elif key == "responseHeader":
                if seconds:
                    profile["first_byte_s"] = max(0.1, float(seconds))
                self._note("taken", name, f"timeouts.{key}", "first_byte_s")
            elif key == "connect":
                self.connect_s.append(float(seconds))
                self._note("changed", name, f"timeouts.{key}", "gateway.timeouts.connect_s holds for all backends")
            elif key == "tlsHandshake":
                self._note("taken", name, f"timeouts.{key}", "has no effect: engines on this machine have no TLS")
            else:
                self._note("changed", name, f"timeouts.{key}", CONNECTION_NOTES[key])


#: What the command decides.
_COMMAND_KEYS: Final = frozenset({"cmd", "cmdStop", "proxy", "checkEndpoint", "env", "useModelName"})


def filter_values(filters: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The parameters that are removed, and those that are set."""
    stripped, params = filters.get("stripParams"), filters.get("setParams")
    names = [each.strip() for each in str(stripped or "").split(",") if each.strip()]
    return names, dict(params) if isinstance(params, dict) else {}


def _without_ports(value: Any) -> tuple[Any, bool]:
    """The value without the texts that name the engine's port, and whether there were any."""
    match value:
        case str():
            return (None, True) if PORT in value else (value, False)
        case dict():
            parts = {key: _without_ports(each) for key, each in value.items()}
            kept = {key: plain for key, (plain, ports) in parts.items() if not (ports and plain is None)}
            return kept, any(ports for _, ports in parts.values())
        case list():
            found = [_without_ports(each) for each in value]
            return [plain for plain, ports in found if not (ports and plain is None)], any(each[1] for each in found)
    return value, False


def _entries(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _check_variables(texts: list[Any]) -> None:
    """Raises `UnknownMacro` for what a shell would replace and a command here cannot contain, such as `${NAME:-x}`."""
    for unknown in sorted(variables([str(each) for each in texts]) - {"port", "pid"}):
        raise UnknownMacro(f"${{{unknown}}} is no macro; if a shell is to replace it, put it into a script")


def _words(command: str) -> list[str]:
    """The words of a command, as llama-swap splits it: over several lines, without those that are comments."""
    lines = [line.rstrip().removesuffix("\\") for line in _without_comments(command).splitlines()]
    return shlex.split("\n".join(lines))


def _without_comments(command: str) -> str:
    return "\n".join(line for line in command.splitlines() if not line.lstrip().startswith("#"))


def _program_at(words: list[str]) -> int | None:
    """Where llama-server stands: first, or after programs that run it and their options."""
    if words and is_llama_server(words[0]):
        return 0
    if not words or re.split(r"[/\\]", words[0])[-1] not in _WRAPPERS:
        return None
    return next((index for index, word in enumerate(words) if is_llama_server(word)), None)
