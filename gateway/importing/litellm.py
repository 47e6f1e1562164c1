"""Translates a configuration file of the LiteLLM proxy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

from hostler.gateway.importing.litellm_addresses import certificate_settings, text_value
from hostler.gateway.importing.litellm_backends import DeploymentBackends, DeploymentNames
from hostler.gateway.importing.litellm_callbacks import CALLBACKS, CallbackReader
from hostler.gateway.importing.litellm_keys import FORWARDED, INSTEAD, NUMBERS, note_of, note_of_check, positive
from hostler.gateway.importing.litellm_models import Deployment, DeploymentReader
from hostler.gateway.importing.report import Imported, ImportReport, NoteKind, has_reference, reference
from hostler.gateway.importing.yaml_source import YamlSource, is_number

_SECTIONS: Final = ("litellm_settings", "router_settings", "general_settings")
_FALLBACKS: Final = ("fallbacks", "default_fallbacks", "context_window_fallbacks")
_CERTIFICATES: Final = ("ssl_verify", "ssl_certificate")
_REDIS: Final = ("redis_url", "redis_host", "redis_port", "redis_password")
#: The variable with the store's password, where the file has the password itself.
_PASSWORD: Final = "STORE_PASSWORD"  # noqa: S105


def import_litellm(text: str, name: str, *, prefix: str) -> Imported:
    """The file as sections. Raises `ImportFailed`."""
    source = YamlSource(text, name)
    report = ImportReport(name, prefix)
    _Translation(source, report).run()
    return report.result()


class _Translation:
    def __init__(self, source: YamlSource, report: ImportReport) -> None:
        self._source = source
        self._report = report
        self._backends = DeploymentBackends()
        self._names = DeploymentNames()
        self._budget: tuple[float, str] | None = None
        self._forwarded: list[tuple[str, set[str] | None]] = []
        self._tls: dict[str, Any] = {}
        self._callbacks = CallbackReader(report, source.mapping("environment_variables"))
        self._count = 0

    def run(self) -> None:
        self._deployments()
        self._aliases()
        for section in _SECTIONS:
            for key, value in self._source.mapping(section).items():
                self._setting(section, key, value)
        self._fallbacks()
        self._spending()
        for at in (("router_settings",), ("general_settings", "coordination_redis")):
            self._store(*at)
        for backend in self._backends.sections.values():
            if patterns := {
                each for each, models in self._forwarded if models is None or models & {*backend["models"]}
            }:
                backend["forward_headers"] = sorted(patterns)
            verified = {"insecure", "ca_file"} & backend.keys()
            backend |= {key: value for key, value in self._tls.items() if key == "client_cert_file" or not verified}
        if self._backends.sections:
            self._report.set("backends", value=self._backends.sections)
        if len(self._backends.sections) > 1:
            self._report.set("gateway", "chain", value=self._backends.chain)
        self._other_sections()

    def _deployments(self) -> None:
        found = DeploymentReader(self._source, self._report).read_all()
        self._count = len({deployment.index for deployment in found})
        for deployment in map(_valid_wildcard, found):
            self._names.add(deployment.name, [deployment])
            self._backends.add(deployment, deployment.name, _rank(deployment))

    def _note(self, kind: NoteKind, section: str, key: str, text: str = "") -> None:
        self._report.note(kind, self._source.line(section, *key.split(".")), f"{section}.{key}", text)

    def _aliases(self) -> None:
        for alias, given in self._source.mapping("router_settings", "model_group_alias").items():
            name = given.get("model") if isinstance(given, dict) else given
            found = self._names.of(name) if isinstance(name, str) else []
            taken = alias in self._names.all()
            if taken or not found:
                text = "is the name of a model" if taken else f"there is no model {self._unknown(str(name))}"
                self._note("missing", "router_settings", f"model_group_alias.{alias}", text)
                continue
            for deployment in found:
                self._backends.add(deployment, alias, 0)
            self._names.add(alias, found)
            self._note("taken", "router_settings", f"model_group_alias.{alias}", f"a second name of {name}")

    def _fallbacks(self) -> None:
        for section in _SECTIONS[:2]:
            for kind in _FALLBACKS:
                given = self._source.mapping(section).get(kind)
                if isinstance(given, list):
                    for name, others in self._pairs(given):
                        self._fall_back(section, kind, name, others)
                elif given is not None:
                    self._note("missing", section, kind, "is no list")

    def _pairs(self, given: list[Any]) -> Iterable[tuple[str, list[str]]]:
        """Names with the names to try after them; a bare list is for all names."""
        bare = [each for each in given if isinstance(each, str)]
        if bare:
            yield from ((name, bare) for name in self._names.all() if name not in bare)
        for each in given:
            if isinstance(each, dict):
                for name, others in each.items():
                    if isinstance(others, list):
                        yield name, [str(other) for other in others if isinstance(other, str)]

    def _fall_back(self, section: str, kind: str, name: str, others: list[str]) -> None:
        for rank, other in enumerate(others, start=2):
            lacking = [each for each in (name, other) if each != "*" and not self._names.of(each)]
            if lacking:
                self._note("missing", section, kind, f"there is no model {self._unknown(lacking[0])}")
                continue
            for each in self._names.all() if name == "*" else [name]:
                self._serve(each)
                for deployment in self._names.of(other) if each != other else ():
                    self._backends.add(deployment, each, rank)
            text = f"{other} answers for {name} where its own backends fail"
            if kind == "context_window_fallbacks":
                self._note("changed", section, kind, f"{text}, for any reason")
            else:
                self._note("taken", section, kind, text)

    def _unknown(self, name: str) -> str:
        """A name that no deployment has, with what it is part of."""
        return f"{name}, but {name}/NAME for each of its models" if f"{name}/*" in self._names.all() else name

    def _serve(self, name: str) -> None:
        """Give a name that only one with a star stands for places of its own, which come before those it falls back to."""
        if name not in self._names.all():
            found = self._names.of(name)
            self._names.add(name, found)
            for deployment in found:
                self._backends.add(deployment, name, 1)

    def _setting(self, section: str, key: str, value: Any) -> None:
        if key in ("model_group_alias", "coordination_redis", *_FALLBACKS, *_REDIS):
            return  # noted one by one
        if (numeric := NUMBERS.get(key)) is not None:
            number = positive(value)
            if number is None:
                self._note("missing", section, key, "is no positive number")
                return
            path, convert, text = numeric
            self._report.set(*path, value=convert(number))
            self._note("changed" if text else "taken", section, key, text or ".".join(path))
        elif key == "master_key" and isinstance(value, str):
            self._report.add_client_key(self._source.line(section, key), f"{section}.{key}", text_value(value))
        elif key in ("max_budget", "budget_duration"):
            self._note_budget(section, key, value)
        elif key in ("set_verbose", "detailed_debug") and isinstance(value, bool):
            if value:
                self._report.set("gateway", "logging", "level", value="debug")
            self._note("taken", section, key, "gateway.logging.level")
        elif key == "json_logs" and isinstance(value, bool):
            if value:
                self._report.set("gateway", "logging", "format", value="json")
            self._note("taken", section, key, "gateway.logging.format")
        elif key in CALLBACKS:
            for kind, text in self._callbacks.notes(value):
                self._note(kind, section, key, text)
        elif key == "default_litellm_params" and isinstance(value, dict):
            self._note("taken", section, key, "parameters of every deployment that has no others")
        elif key in FORWARDED and value is True:
            self._forwarded.append((FORWARDED[key], None))
            self._note("taken", section, key, f"forward_headers of all backends: {FORWARDED[key]}")
        elif key == "model_group_settings" and isinstance(value, dict):
            self._group_settings(section, value)
        elif key in _CERTIFICATES:
            self._certificates(section, key, value)
        elif key == "optional_pre_call_checks" and isinstance(value, list):
            for kind, text in map(note_of_check, value):
                self._note(kind, section, key, text)
        elif key == "forward_traceparent_to_llm_provider" and isinstance(value, bool):
            self._report.set("gateway", "tracing", "to_clouds", value=value)
            self._note("taken", section, key, "gateway.tracing.to_clouds")
        else:
            self._callbacks.traces |= key == "otel" and value is True
            kind, text = note_of(key, value)
            self._note(kind, section, key, text)

    def _group_settings(self, section: str, settings: dict[str, Any]) -> None:
        for key, models in settings.items():
            where = f"model_group_settings.{key}"
            if key in FORWARDED and isinstance(models, list):
                self._forwarded.append((FORWARDED[key], {str(each) for each in models}))
                self._note("taken", section, where, f"forward_headers of their backends: {FORWARDED[key]}")
            else:
                self._note("missing", section, where, "settings are those of backends and models")

    def _certificates(self, section: str, key: str, value: Any) -> None:
        """Keep what all deployments have in common of TLS, for backends that have none of it themselves."""
        settings = {"client_cert_file": text_value(value)} if key == "ssl_certificate" else certificate_settings(value)
        self._tls |= settings
        self._note("taken", section, key, ", ".join(settings) or "certificates are verified")

    def _store(self, *at: str) -> None:
        """Redis that several instances share is the store of a cluster."""
        names = _REDIS if len(at) == 1 else ("url", "host", "port", "password")
        section, path = at[0], (*at[1:], "")
        given = {name: self._source.mapping(*at).get(name) for name in names}
        present = [name for name in names if name in self._source.mapping(*at)]
        try:
            if present and "cluster" in self._report.sections:
                raise ValueError("cluster.store is that of router_settings")
            address = self._store_address(*given.values())
        except ValueError as error:
            for name in present:
                self._note("missing", section, ".".join(path) + name, str(error))
            return
        if address is not None:
            self._report.set("cluster", "store", value=address)
        for name in present:
            text = "cluster.store; install it with `pip install 'hostler[cluster]'`"
            self._note("changed", section, ".".join(path) + name, text)
        for name in self._source.mapping(*at) if len(at) > 1 else ():
            if name not in names:
                self._note("missing", section, ".".join(path) + name, "options of the store are part of cluster.store")

    def _store_address(self, url: Any, host: Any, port: Any, password: Any) -> str | None:
        """The address of the store, `None` if there is none. Raises `ValueError` with what it lacks."""
        if url:
            address = text_value(url)
            if not has_reference(address) and not re.fullmatch(r"(rediss?|unix)://[!-~]+", address):
                raise ValueError("is not an address of the form redis://HOST:PORT")
            return address if has_reference(address) else self._without_password(address)
        if not host:
            if port or password:
                raise ValueError("there is no host")
            return None
        where, number, secret = text_value(host), text_value(port), text_value(password)
        if not has_reference(where) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", where):
            raise ValueError(f"{where!r} is not the name of a host")
        if number and not has_reference(number) and not re.fullmatch(r"\d{1,5}", number):
            raise ValueError(f"{number!r} is not a port")
        if secret and not has_reference(secret):
            self._report.environment_file(_PASSWORD, quote(secret, safe=""))
            secret = reference(_PASSWORD)
        return f"redis://{f':{secret}@' if secret else ''}{where}{f':{number}' if number else ''}"

    def _without_password(self, address: str) -> str:
        """The address with its password as a reference to a variable, as long as it has one."""
        match = re.fullmatch(r"(\w+://[^:@/]*:)([^@]+)(@.*)", address)
        if match is None:
            return address
        self._report.environment_file(_PASSWORD, match[2])
        return f"{match[1]}{reference(_PASSWORD)}{match[3]}"

    def _note_budget(self, section: str, key: str, value: Any) -> None:
        settings = self._source.mapping(section)
        limit = settings.get("max_budget")
        if not is_number(limit):
            self._note("missing", section, key, "there is no max_budget in US dollars")
        elif key == "max_budget":
            self._budget = float(limit), str(settings.get("budget_duration", "30d"))
            self._note("taken", section, key, "gateway.spending.daily_limit")
        else:
            daily = str(value) in ("1d", "24h")
            text = "" if daily else f"the limit is for a day: its share of {value}"
            self._note("taken" if daily else "changed", section, key, text)

    def _spending(self) -> None:
        if self._budget is None:
            return
        limit, duration = self._budget
        match = re.fullmatch(r"(\d{1,6})(s|m|h|d|mo)", duration)
        days = int(match[1]) * _DAYS[match[2]] if match else 30.0
        self._report.set("gateway", "spending", "daily_limit", value=round(limit / max(days, 1.0), 6))

    def _other_sections(self) -> None:
        for key, value in self._source.value.items():
            if key == "model_list":
                count = len(self._source.items(key))
                self._report.taken(self._source.line(key), key, f"{self._count} of {count} deployments")
            elif key == "credential_list":
                self._report.taken(self._source.line(key), key, "written out where they are used")
            elif key == "environment_variables" and isinstance(value, dict):
                for name, given in value.items():
                    self._variable(str(name), given)
            elif key == "callback_settings" and isinstance(value, dict):
                self._callback_settings(value)
            elif key not in _SECTIONS:
                kind, text = note_of(key, value)
                self._report.note(kind, self._source.line(key), key, text)

    def _callback_settings(self, settings: dict[str, Any]) -> None:
        for name, given in settings.items():
            for key, value in given.items() if isinstance(given, dict) and given else [("", given)]:
                where = f"{name}.{key}" if key else name
                if key == "message_logging" and value is False:
                    self._note("taken", "callback_settings", where, "traces are without contents")
                else:
                    self._note("missing", "callback_settings", where, INSTEAD["callback_settings"])

    def _variable(self, name: str, given: Any) -> None:
        """Put a variable into a file for where Hostler is started, since the configuration refers to variables."""
        value = text_value(given)
        if not value:
            self._note("meaningless", "environment_variables", name, "has no value")
            return
        if given == f"os.environ/{name}":
            self._note("taken", "environment_variables", name, "is set where Hostler is started")
            return
        if (text := self._callbacks.variable(name, value)) is not None:
            self._note("taken", "environment_variables", name, text)
            return
        try:
            file = self._report.environment_file(name, value)
        except ValueError as error:
            self._note("missing", "environment_variables", name, str(error))
            return
        text = f"is in {file}; start Hostler with it, for example as EnvironmentFile= of its unit"
        self._note("changed", "environment_variables", name, text)


_DAYS: Final[Mapping[str, float]] = {"s": 1 / 86400, "m": 1 / 1440, "h": 1 / 24, "d": 1.0, "mo": 30.0}


def _valid_wildcard(deployment: Deployment) -> Deployment:
    """`openai/*` with a model `openai/*` there: what stands for the star is passed on."""
    if "*" in deployment.model and "*" not in deployment.name:
        return msgspec.structs.replace(deployment, name="*" if deployment.name == "*" else f"{deployment.name}/*")
    return deployment


def _rank(deployment: Deployment) -> float:
    """Names with a star come after those that stand for themselves; among either, the order of the file decides."""
    order = 0.0 if deployment.order is None else deployment.order / (deployment.order + 1) - 1
    return order + ("*" in deployment.name)
