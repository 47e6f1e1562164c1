"""Translates a configuration file of the LiteLLM proxy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from hostler.gateway.importing.litellm_models import Deployment, DeploymentReader, text_value
from hostler.gateway.importing.report import Imported, ImportReport
from hostler.gateway.importing.yaml_source import YamlSource, is_number

_SECTIONS: Final = ("litellm_settings", "router_settings", "general_settings")
_FALLBACKS: Final = ("fallbacks", "default_fallbacks", "context_window_fallbacks")
#: Keys without a counterpart, and what there is instead.
_INSTEAD: Final[Mapping[str, str]] = {
    "redis_host": "several gateways share their state through cluster.url",
    "redis_port": "several gateways share their state through cluster.url",
    "redis_password": "several gateways share their state through cluster.url",
    "cache": "answers are not cached",
    "cache_params": "answers are not cached",
    "alerting": "alerts are rules of Prometheus: deploy/alerts.yaml",
    "database_url": "keys are in a file: gateway.api_keys_file",
    "store_prompts_in_spend_logs": "contents are recorded with gateway.recording.contents alone",
    "allowed_routes": "what a key may do is its scopes: `hostler keys set`",
    "enable_jwt_auth": "clients are known by API keys alone",
    "custom_auth": "clients are known by API keys alone",
    "global_max_parallel_requests": "requests at a time are limited by backend, profile and key",
    "disable_cooldowns": "a backend that fails is always left out for a while: section breaker",
    "completion_model": "a request without a model goes to the loaded one, else to the profile with default: true",
    "forward_client_headers_to_llm_api": "headers of clients are not passed on",
    "content_policy_fallbacks": "an answer of a model is never asked for again",
}


#: What happens instead of what the key says.
_CHANGED: Final[Mapping[str, str]] = {
    "routing_strategy": "backends are tried in the order of gateway.chain, hosts that are nearest to serving a model first",
    "drop_params": "parameters that a protocol lacks are left out in any case",
    "modify_params": "requests are translated for backends of other protocols in any case",
    "num_retries": "the next backend of the chain is tried, and the same one is not",
    "retry_after": "the next backend of the chain is tried, and the same one is not",
    "retry_policy": "what follows an error depends on its kind; see docs/operations.md",
    "allowed_fails_policy": "breaker.failures holds for all failures; rejected requests do not count",
    "disable_spend_logs": "figures of requests are kept without their contents",
}
#: What Hostler does without a setting, while the value is true.
_ALWAYS: Final[Mapping[str, str]] = {
    "background_health_checks": "backends are checked in the background",
    "enable_pre_call_checks": "a backend whose context is too small is skipped",
    "turn_off_message_logging": "prompts and answers are not recorded unless gateway.recording.contents is set",
    "redact_user_api_key_info": "keys are named in logs, never shown",
    "disable_master_key_return": "keys are never shown",
}
_NO_CALLBACK: Final = "figures are at /metrics, traces go to gateway.tracing.endpoint"
_CALLBACKS: Final = frozenset({"success_callback", "failure_callback", "callbacks", "service_callbacks"})
#: Callbacks with a counterpart, whether it has the same effect, and what it is.
_CALLBACK_NAMES: Final[Mapping[str, tuple[str, str]]] = {
    "prometheus": ("taken", "figures are at /metrics"),
    "prometheus_system": ("taken", "figures are at /metrics"),
    "otel": ("changed", "set gateway.tracing.endpoint to where traces go"),
    "opentelemetry": ("changed", "set gateway.tracing.endpoint to where traces go"),
}


def import_litellm(text: str, name: str, *, prefix: str) -> Imported:
    """The file as sections. Raises `ImportFailed`."""
    source = YamlSource(text, name)
    report = ImportReport(name, prefix)
    _Translation(source, report).run()
    return report.result()


class _Backends:
    """Groups deployments by server: a name is served once by each backend, in the order of the chain."""

    def __init__(self) -> None:
        self.sections: dict[str, dict[str, Any]] = {}
        self._ranks: dict[str, int] = {}

    def add(self, deployment: Deployment, name: str, rank: int) -> None:
        """Serve `name` by this deployment; one of a higher rank is tried later."""
        wanted = deployment.model
        for backend, given in self.sections.items():
            same = {key: value for key, value in given.items() if key not in ("models", "prices", "describe")}
            # Limits are those of one deployment.
            apart = "limits" in same and set(given["models"].values()) != {wanted}
            if apart:
                continue
            if self._ranks[backend] == rank and same == dict(deployment.backend) and name not in given["models"]:
                self._extend(given, deployment, name)
                return
            if same == dict(deployment.backend) and given["models"].get(name) == wanted:
                return
        base = re.sub(r"[^A-Za-z0-9]+", "-", deployment.provider).strip("-")
        backend, number = base, 2
        while backend in self.sections:
            backend, number = f"{base}-{number}", number + 1
        self.sections[backend] = {**deployment.backend, "models": {}}
        self._ranks[backend] = rank
        self._extend(self.sections[backend], deployment, name)

    def _extend(self, given: dict[str, Any], deployment: Deployment, name: str) -> None:
        given["models"][name] = deployment.model
        if deployment.price is not None:
            given.setdefault("prices", {})[name] = dict(deployment.price)
        if deployment.description is not None:
            given.setdefault("describe", {})[deployment.model] = dict(deployment.description)

    @property
    def chain(self) -> list[str]:
        return sorted(self.sections, key=lambda backend: self._ranks[backend])


class _Translation:
    def __init__(self, source: YamlSource, report: ImportReport) -> None:
        self._source = source
        self._report = report
        self._backends = _Backends()
        self._by_name: dict[str, list[Deployment]] = {}
        self._budget: tuple[float, str] | None = None

    def run(self) -> None:
        for deployment in DeploymentReader(self._source, self._report).read_all():
            rank = 0 if "*" not in deployment.name else 1
            deployment = _valid_wildcard(deployment)
            self._by_name.setdefault(deployment.name, []).append(deployment)
            self._backends.add(deployment, deployment.name, rank)
        self._aliases()
        for section in _SECTIONS:
            for key, value in self._source.mapping(section).items():
                self._setting(section, key, value)
        self._fallbacks()
        self._spending()
        if self._backends.sections:
            self._report.set("backends", value=self._backends.sections)
        if len(self._backends.sections) > 1:
            self._report.set("gateway", "chain", value=self._backends.chain)
        self._other_sections()

    def _note(self, kind: str, section: str, key: str, text: str = "") -> None:
        add = {"taken": self._report.taken, "changed": self._report.changed, "missing": self._report.missing}[kind]
        add(self._source.line(section, *key.split(".")), f"{section}.{key}", text)

    def _aliases(self) -> None:
        for alias, given in self._source.mapping("router_settings", "model_group_alias").items():
            name = given.get("model") if isinstance(given, dict) else given
            found = self._by_name.get(str(name), [])
            if alias in self._by_name or not found:
                text = "is the name of a model" if found else f"there is no model {name}"
                self._note("missing", "router_settings", f"model_group_alias.{alias}", text)
                continue
            for deployment in found:
                self._backends.add(deployment, alias, 0)
            self._by_name[alias] = found
            self._note("taken", "router_settings", f"model_group_alias.{alias}", f"a second name of {name}")

    def _fallbacks(self) -> None:
        for section in _SECTIONS[:2]:
            for kind in _FALLBACKS:
                given = self._source.mapping(section).get(kind)
                if isinstance(given, list):
                    for name, others in self._pairs(given):
                        self._fall_back(section, kind, name, others)

    def _pairs(self, given: list[Any]) -> Iterable[tuple[str, list[str]]]:
        """Names with the names to try after them; a bare list is for all names."""
        bare = [each for each in given if isinstance(each, str)]
        if bare:
            yield from ((name, bare) for name in [*self._by_name] if name not in bare)
        for each in given:
            if isinstance(each, dict):
                for name, others in each.items():
                    if isinstance(others, list):
                        yield name, [str(other) for other in others if isinstance(other, str)]

    def _fall_back(self, section: str, kind: str, name: str, others: list[str]) -> None:
        names = [*self._by_name] if name == "*" else [name]
        for rank, other in enumerate(others, start=2):
            if (name not in self._by_name and name != "*") or other not in self._by_name:
                self._note("missing", section, kind, f"{name} or {other} is no model that was taken over")
                continue
            for each in names:
                for deployment in self._by_name[other] if each != other else ():
                    self._backends.add(deployment, each, rank)
            text = f"{other} answers for {name} where its own backends fail"
            if kind == "context_window_fallbacks":
                self._note("changed", section, kind, f"{text}, for any reason")
            else:
                self._note("taken", section, kind, text)

    def _setting(self, section: str, key: str, value: Any) -> None:
        number = value if is_number(value) and value > 0 else None
        if key in ("model_group_alias", *_FALLBACKS):
            return  # noted one by one
        if (numeric := _NUMBERS.get(key)) is not None:
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
        elif key in _CHANGED:
            self._note("changed", section, key, _CHANGED[key])
        elif key in _ALWAYS and value is True:
            self._note("taken", section, key, _ALWAYS[key])
        elif key in _CALLBACKS:
            self._callbacks(section, key, value)
        else:
            self._note("missing", section, key, _INSTEAD.get(key, "has no counterpart"))

    def _callbacks(self, section: str, key: str, given: Any) -> None:
        for name in given if isinstance(given, list) else [given]:
            kind, text = _CALLBACK_NAMES.get(str(name), ("missing", _NO_CALLBACK))
            self._note(kind, section, key, f"{name}: {text}")

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
            if key in ("model_list", "credential_list"):
                self._report.taken(self._source.line(key), key)
            elif key == "environment_variables" and isinstance(value, dict):
                for name, given in value.items():
                    self._variable(str(name), given)
            elif key not in _SECTIONS:
                self._report.missing(self._source.line(key), key, "has no counterpart")

    def _variable(self, name: str, given: Any) -> None:
        """Put a variable into a file for where Hostler is started, since the configuration refers to variables."""
        try:
            file = self._report.environment_file(name, text_value(given))
        except ValueError as error:
            self._note("missing", "environment_variables", name, str(error))
            return
        text = f"is in {file}; start Hostler with it, for example as EnvironmentFile= of its unit"
        self._note("changed", "environment_variables", name, text)


_DAYS: Final[Mapping[str, float]] = {"s": 1 / 86400, "m": 1 / 1440, "h": 1 / 24, "d": 1.0, "mo": 30.0}

_Number = tuple[tuple[str, ...], Callable[[float], Any], str]
#: Settings that are a number: their place here, and what is different there.
_NUMBERS: Final[Mapping[str, _Number]] = {
    "request_timeout": (("gateway", "timeouts", "first_byte_s"), float, "the limit of the time to the first byte"),
    "timeout": (("gateway", "timeouts", "first_byte_s"), float, "the limit of the time to the first byte"),
    "stream_timeout": (("gateway", "timeouts", "between_bytes_s"), float, "the limit of the time between two bytes"),
    "allowed_fails": (("breaker", "failures"), lambda number: int(number) + 1, ""),
    "cooldown_time": (("breaker", "open_s"), float, ""),
    "health_check_interval": (("gateway", "probing", "every_s"), float, ""),
    "max_request_size_mb": (("gateway", "max_body"), lambda number: int(number * 1024 * 1024), ""),
    "max_parallel_requests": (("gateway", "queue", "max_waiting"), int, "the length of the queue of each host"),
}


def _valid_wildcard(deployment: Deployment) -> Deployment:
    """`openai/*` with a model `openai/*` there: what stands for the star is passed on."""
    if "*" in deployment.model and "*" not in deployment.name:
        return msgspec.structs.replace(deployment, name="*" if deployment.name == "*" else f"{deployment.name}/*")
    return deployment
