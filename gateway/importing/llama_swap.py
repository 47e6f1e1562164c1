"""Translates a configuration file of llama-swap."""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from typing import Any, Final

from hostler.gateway.importing.llama_swap_macros import UnknownMacro, expand
from hostler.gateway.importing.llama_swap_models import CONNECTION_NOTES, SwapModels, filter_values
from hostler.gateway.importing.llama_swap_selectors import add_selectors
from hostler.gateway.importing.llama_swap_sets import InvalidExpression, SwapGroup, kept_loaded, rules_of, written_out
from hostler.gateway.importing.report import FactsOf, Imported, ImportReport, has_reference, plain_name
from hostler.gateway.importing.request_filters import as_rules
from hostler.gateway.importing.yaml_source import YamlSource, is_number

_LEVELS: Final = {"debug": "debug", "info": "info", "warn": "warning", "warning": "warning", "error": "error"}
_PEER_TIMEOUTS: Final = {"connect": "connect_s", "responseHeader": "first_byte_s"}
#: Settings that have no counterpart, and what is done instead.
_SESSIONS: Final = "requests in progress are shown with their key and address, not by a header"
#: Ports for engines, counted from `startPort`.
_PORTS: Final = 1000


def import_llama_swap(
    text: str, name: str, *, prefix: str, path_of: Callable[[str], str], facts_of: FactsOf
) -> Imported:
    """The file as sections. `path_of` gives the whole path of a relative one. Raises `ImportFailed`."""
    source = YamlSource(text, name)
    report = ImportReport(name, prefix)
    translation = _Translation(source, report)
    translation.models = SwapModels(source, report, source.mapping("macros"), path_of, facts_of)
    translation.run()
    return report.result()


class _Translation:
    models: SwapModels

    def __init__(self, source: YamlSource, report: ImportReport) -> None:
        self._source = source
        self._report = report

    def run(self) -> None:
        ttl = self._source.value.get("globalTTL")
        number = ttl if is_number(ttl) and ttl > 0 else None
        self.models.add_all(number)
        for key, value in self._source.value.items():
            self._setting(key, value)
        if connect := [each for each in self.models.connect_s if each > 0]:
            self._report.set("gateway", "timeouts", "connect_s", value=max(connect))

    def _taken(self, key: str, text: str = "") -> None:
        self._report.taken(self._source.line(key), key, text)

    def _setting(self, key: str, value: Any) -> None:
        report, line = self._report, self._source.line(key)
        match key, value:
            case "models", _:
                self._taken(key, f"{len(self.models.names)} of {len(self._source.mapping('models'))}")
            case "macros", dict():
                self._taken(key, "written out where they are used")
            case "globalTTL", int() | float() if is_number(value):
                self._taken(key, "ttl_s of each profile" if value > 0 else "models are not unloaded")
            case "healthCheckTimeout", int() | float() if is_number(value):
                report.set("supervisor", "start_timeout_s", value=float(max(15, value)))
                self._taken(key, "supervisor.start_timeout_s")
            case "logLevel", str() if value in _LEVELS:
                report.set("gateway", "logging", "level", value=_LEVELS[value])
                self._taken(key, "gateway.logging.level")
            case "startPort", int() if 0 < value < 65536 and not isinstance(value, bool):
                last = min(value + _PORTS - 1, 65535)
                report.set("supervisor", "engine_ports", value=f"{value}-{last}")
                self._taken(key, f"supervisor.engine_ports, up to {last}")
            case "sendLoadingState", bool():
                report.set("gateway", "switching", "progress", value="thinking" if value else "quiet")
                self._taken(key, "gateway.switching.progress")
            case "includeAliasesInList", bool():
                text = "OpenAI's list of models has entries for aliases, too"
                report.taken(line, key, text) if value else report.changed(line, key, text)
            case "logToStdout", _:
                self._log_to_stdout(key, value)
            case "logTimeFormat", _:
                text = "the log has the time in ISO 8601; the journal adds its own"
                report.taken(line, key) if value in ("", None) else report.missing(line, key, text)
            case "metricsMaxInMemory", _:
                report.changed(line, key, "figures of past requests are kept in a database, by their age")
            case "captureBuffer", int() if is_number(value):
                self._capture_buffer(int(value))
            case "apiKeys", list():
                self._api_keys(value)
            case "unloadTimeout", int() | float() if is_number(value):
                report.set("supervisor", "stop_grace_s", value=float(value or 10))
                self._taken(key, "supervisor.stop_grace_s")
            case "groups", dict():
                self._groups("groups")
            case "matrix", dict():
                self._matrix("matrix")
            case "routing", dict():
                self._routing()
            case "selectors", dict():
                add_selectors(self._source, self._report, self.models.names)
            case "logRequests", bool():
                report.taken(line, key, "every request has a line in the log")
            case "profiles", dict():
                self._profiles()
            case "performance", dict():
                report.changed(line, key, "figures of machine and GPUs are always shown, and kept in the history")
            case "upstream", dict():
                self._upstream(value)
            case "ui", dict():
                self._ui(value)
            case "hooks", dict():
                self._hooks()
            case "peers", dict():
                self._peers()
            case _:
                report.missing(line, key, "is unknown, or has a value of the wrong kind")

    def _ui(self, given: dict[str, Any]) -> None:
        activity = given.get("activity")
        for path in [("ui", "activity", key) for key in activity] if isinstance(activity, dict) else []:
            text = _SESSIONS if path[-1] == "session_id" else "is unknown"
            self._report.missing(self._source.line(*path), ".".join(path), text)
        for key in given.keys() - {"activity"}:
            text = "the dashboard has no settings of its own in the file"
            self._report.missing(self._source.line("ui", key), f"ui.{key}", text)

    def _log_to_stdout(self, key: str, value: Any) -> None:
        if value in ("proxy", None):
            self._taken(key, "engines' output is shown by `hostler logs`")
        else:
            self._report.missing(self._source.line(key), key, "engines' output is shown by `hostler logs` alone")

    def _capture_buffer(self, megabytes: int) -> None:
        line = self._source.line("captureBuffer")
        if not megabytes:
            self._report.taken(line, "captureBuffer", "prompts and answers are not recorded")
            return
        self._report.set("gateway", "recording", "max_size", value=f"{megabytes}MiB")
        text = "the limit gateway.recording.max_size; nothing is recorded until gateway.recording.contents is set"
        self._report.changed(line, "captureBuffer", text)

    def _expanded(self, value: Any, line: int | None, key: str) -> Any:
        """The value with macros replaced; `None` with a note if that is not possible."""
        try:
            return expand(value, self._source.mapping("macros"))
        except UnknownMacro as error:
            self._report.missing(line, key, str(error))
            return None

    def _api_keys(self, keys: list[Any]) -> None:
        for index, given in enumerate(keys):
            line, key = self._source.line("apiKeys", index), f"apiKeys[{index}]"
            value = self._expanded(given, line, key)
            if value is not None:
                self._report.add_client_key(line, key, str(value))

    def _groups(self, *at: str) -> None:
        place = ".".join(at)
        groups: dict[str, SwapGroup] = {}
        labels: dict[str, str] = {}
        for name in self._source.mapping(*at):
            here = _free(plain_name(name), groups)
            labels[here] = name
            given = self._source.mapping(*at, name)
            members = [str(each) for each in self._source.items(*at, name, "members")]
            known = tuple(self.models.names[each] for each in members if each in self.models.names)
            unknown = [each for each in members if each not in self.models.names]
            if unknown:
                line = self._source.line(*at, name, "members")
                text = f"there is no model {', '.join(unknown)} among those taken over"
                self._report.note("changed" if known else "missing", line, f"{place}.{name}.members", text)
            groups[here] = SwapGroup(
                members=known,
                swap=given.get("swap", True) is not False,
                exclusive=given.get("exclusive", True) is not False,
                persistent=given.get("persistent", False) is True,
            )
            for key in given:
                line, path = self._source.line(*at, name, key), f"{place}.{name}.{key}"
                if key in ("swap", "exclusive", "persistent") or (key == "members" and not unknown):
                    self._report.taken(line, path)
                elif key == "members":
                    continue  # noted above
                else:
                    self._report.missing(line, path, "is unknown")
        models = list(self.models.names.values())
        for name, text in kept_loaded(groups, models):
            self._report.changed(self._source.line(*at, labels[name]), f"{place}.{labels[name]}", text)
        rules = rules_of(groups, models)
        if rules.groups:
            self._report.set("supervisor", "groups", value={name: list(each) for name, each in rules.groups.items()})
        self._set_sets(rules.sets)

    def _set_sets(self, sets: tuple[tuple[str, ...], ...]) -> None:
        if sets:
            self._report.set("supervisor", "sets", value=[list(each) for each in sets])

    def _matrix(self, *at: str) -> None:
        place = ".".join(at)
        given = self._source.mapping(*at)
        variables = self._source.mapping(*at, "vars")
        expressions = {key: str(value) for key, value in self._source.mapping(*at, "sets").items()}
        names = {**self.models.names}
        for short, model in variables.items():
            line, key = self._source.line(*at, "vars", short), f"{place}.vars.{short}"
            if isinstance(model, str) and model in self.models.names:
                names[short] = self.models.names[model]
                self._report.taken(line, key)
            else:
                self._report.missing(line, key, f"there is no model {model}")
        self._matrix_sets(at, expressions, names)
        costs = self._source.mapping(*at, "evict_costs")
        for short, cost in costs.items():
            line, key = self._source.line(*at, "evict_costs", short), f"{place}.evict_costs.{short}"
            profile = self._report.sections.get("profiles", {}).get(names.get(short, ""))
            if profile is None or not is_number(cost):
                self._report.missing(line, key, "has no such model, or is no cost")
            else:
                profile["evict_cost"] = float(cost)
                self._report.changed(line, key, "evict_cost, in seconds beside those that other models take to load")
        for unknown in given.keys() - {"vars", "sets", "evict_costs"}:
            self._report.missing(self._source.line(*at, unknown), f"{place}.{unknown}", "is unknown")

    def _matrix_sets(self, at: tuple[str, ...], expressions: dict[str, str], names: dict[str, str]) -> None:
        place = f"{'.'.join(at)}.sets"
        try:
            found = written_out(expressions)
        except InvalidExpression as error:
            self._report.missing(self._source.line(*at, "sets"), place, str(error))
            return
        if unknown := dict.fromkeys(each for one in found for each in one if each not in names):
            text = f"not taken over: {', '.join(unknown)}"
            self._report.missing(self._source.line(*at, "sets"), place, text)
        known = [tuple(names[each] for each in one if each in names) for one in found]
        self._set_sets(tuple(dict.fromkeys(each for each in known if each)))
        for key in expressions:
            self._report.taken(self._source.line(*at, "sets", key), f"{place}.{key}", "supervisor.sets")

    def _routing(self) -> None:
        """Groups and matrix where newer files have them, of which `use` names one."""
        at = ("routing", "router", "settings")
        used = self._source.mapping("routing", "router").get("use", "group")
        self._report.taken(self._source.line("routing", "router", "use"), "routing.router.use")
        for key, kind in (("groups", "group"), ("matrix", "matrix")):
            if key not in self._source.mapping(*at):
                continue
            if used != kind:
                text = f"is not in use: routing.router.use is {used}"
                self._report.changed(self._source.line(*at, key), ".".join((*at, key)), text)
            elif key == "groups":
                self._groups(*at, key)
            else:
                self._matrix(*at, key)
        scheduler = self._source.mapping("routing", "scheduler")
        if scheduler.get("use") == "fifo":
            self._report.taken(self._source.line("routing", "scheduler", "use"), "routing.scheduler.use")
        fifo = ("routing", "scheduler", "settings", "fifo")
        for name, priority in self._source.mapping(*fifo, "priority").items():
            line, key = self._source.line(*fifo, "priority", name), ".".join((*fifo, "priority", name))
            profile = self._report.sections.get("profiles", {}).get(self.models.names.get(name, ""))
            if profile is None:
                self._report.missing(line, key, f"there is no model {name}")
            elif not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) > 1_000_000:
                self._report.missing(line, key, "is no whole number of at most a million")
            else:
                profile["priority"] = priority
                self._report.taken(line, key, "priority of the profile")

    def _upstream(self, given: dict[str, Any]) -> None:
        """Paths below `/upstream/MODEL` that load no model."""
        paths = [str(each) for each in self._source.items("upstream", "ignorePaths")]
        line, key = self._source.line("upstream", "ignorePaths"), "upstream.ignorePaths"
        try:
            for each in paths:
                re.compile(each)
        except re.error as error:
            self._report.missing(line, key, f"{error.pattern!r} is no regular expression of Python: {error}")
        else:
            self._report.set("gateway", "switching", "loaded_only", value=paths)
            self._report.taken(line, key, "gateway.switching.loaded_only")
        for unknown in given.keys() - {"ignorePaths"}:
            self._report.missing(self._source.line("upstream", unknown), f"upstream.{unknown}", "is unknown")

    def _profiles(self) -> None:
        """Lists of models that run together, as older files have them; in newer ones, names that are switched at run time."""
        together: list[list[str]] = []
        for name, given in self._source.mapping("profiles").items():
            line, key = self._source.line("profiles", name), f"profiles.{name}"
            if not isinstance(given, list):
                text = (
                    "names are not switched at runtime: aliases and variants take effect as soon as the file is saved"
                )
                self._report.missing(line, key, text)
                continue
            if decides := [each for each in ("groups", "matrix", "routing") if each in self._source.value]:
                self._report.missing(line, key, f"{decides[0]} says which models run together")
                continue
            known = [self.models.names[str(each)] for each in given if str(each) in self.models.names]
            if len(known) < len(given):
                self._report.missing(
                    line,
                    key,
                    f"there is no model {', '.join(str(each) for each in given if str(each) not in self.models.names)}",
                )
            else:
                self._report.changed(line, key, "supervisor.sets: each is loaded when it is asked for, by its own name")
            if known:
                together.append(known)
        if together:
            alone = [[name] for name in self.models.names.values() if not any(name in each for each in together)]
            self._set_sets(tuple(tuple(each) for each in (*together, *alone)))

    def _hooks(self) -> None:
        for index, name in enumerate(self._source.items("hooks", "on_startup", "preload")):
            line = self._source.line("hooks", "on_startup", "preload", index)
            profile = self._report.sections.get("profiles", {}).get(self.models.names.get(str(name), ""))
            if profile is None:
                self._report.missing(line, f"hooks.on_startup.preload[{index}]", f"there is no model {name}")
            else:
                profile["preload"] = True
                self._report.taken(line, f"hooks.on_startup.preload[{index}]")
        for path in ((), ("on_startup",)):
            for key in self._source.mapping("hooks", *path).keys() - {"on_startup", "preload"}:
                where = ".".join(("hooks", *path, key))
                self._report.missing(self._source.line("hooks", *path, key), where, "is unknown")

    def _peers(self) -> None:
        for name in self._source.mapping("peers"):
            line = self._source.line("peers", name)
            given = self._expanded(self._source.mapping("peers", name), line, f"peers.{name}")
            if given is not None:
                self._peer(name, given)

    def _peer(self, name: str, given: dict[str, Any]) -> None:
        address = given.get("proxy")
        if not isinstance(address, str) or not address.startswith(("http://", "https://")):
            self._peer_note("missing", name, "proxy", "is no address; the peer is not taken over")
            return
        url = address.rstrip("/")
        backend: dict[str, Any] = {"kind": "openai", "url": url if url.endswith("/v1") else f"{url}/v1"}
        plain = plain_name(name).replace("/", "-").replace(":", "-")
        here = _free(plain, self._report.sections.get("backends", {}))
        self._peer_note("taken", name, "proxy", f"backends.{here}")
        models = given.get("models")
        backend["models"] = {str(each): str(each) for each in models} if isinstance(models, list) else {}
        self._peer_note("taken", name, "models")
        if (key := given.get("apiKey")) and isinstance(key, str):
            if has_reference(key):
                backend["api_key"] = key
                self._peer_note("taken", name, "apiKey", "as a reference to the variable")
            else:
                backend["api_key_file"] = self._report.secret_file(here, key)
                self._peer_note("changed", name, "apiKey", f"is in the file {backend['api_key_file']}")
        if isinstance(filters := given.get("filters"), dict):
            dropped, forced = filter_values(filters)
            rules, refused = as_rules(drop=dropped, force=forced)
            for each in refused:
                self._peer_note("missing", name, "filters", f"{each} cannot be changed by a rule")
            if rules:
                backend["request"] = rules
            for each in filters:
                known = each in ("stripParams", "setParams")
                self._peer_note("taken" if known else "missing", name, f"filters.{each}", "" if known else "is unknown")
        if limits := self._peer_timeouts(name, given.get("timeouts")):
            backend["timeouts"] = limits
        for key in given.keys() - {"proxy", "models", "apiKey", "filters", "timeouts"}:
            self._peer_note("missing", name, key, "is unknown")
        self._report.set("backends", here, value=backend)

    def _peer_timeouts(self, name: str, timeouts: Any) -> dict[str, float]:
        limits: dict[str, float] = {}
        for key, value in (timeouts if isinstance(timeouts, dict) else {}).items():
            where = f"timeouts.{key}"
            if key in _PEER_TIMEOUTS and is_number(value):
                if value > 0:
                    limits[_PEER_TIMEOUTS[key]] = float(value)
                    self._peer_note("taken", name, where, f"timeouts.{_PEER_TIMEOUTS[key]} of the backend")
                else:
                    self._peer_note("changed", name, where, f"gateway.timeouts.{_PEER_TIMEOUTS[key]} holds")
            elif key in CONNECTION_NOTES and is_number(value):
                self._peer_note("changed", name, where, CONNECTION_NOTES[key])
            else:
                self._peer_note("missing", name, where, "is unknown, or no number of seconds")
        return limits

    def _peer_note(self, kind: str, name: str, key: str, text: str = "") -> None:
        add = {"taken": self._report.taken, "changed": self._report.changed, "missing": self._report.missing}[kind]
        add(self._source.line("peers", name, *key.split(".")), f"peers.{name}.{key}", text)


def _free(wanted: str, taken: Container[str]) -> str:
    """The name, with a number if it is taken."""
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}-{number}", number + 1
    return name
