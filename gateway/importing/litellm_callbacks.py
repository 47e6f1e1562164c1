"""Where LiteLLM's callbacks send figures and traces: Prometheus, collectors, and services that take OTLP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from hostler.gateway.importing.report import ImportReport, NoteKind, reference

#: The names of the settings that list callbacks.
CALLBACKS: Final = frozenset({"success_callback", "failure_callback", "callbacks", "service_callbacks"})
#: Variables with the address of a collector, and what is added to them.
_COLLECTORS: Final[Mapping[str, str]] = {"OTEL_ENDPOINT": "", "OTEL_EXPORTER_OTLP_ENDPOINT": "/v1/traces"}
_URL: Final = re.compile(r"https?://[!-~]+")
_METRICS: Final = frozenset({"prometheus", "prometheus_system"})
_OTEL: Final = frozenset({"otel", "opentelemetry"})
_INSTALL: Final = "install it with `pip install 'hostler[otel]'`"
#: What there is instead of shares of limits for kinds of keys.
PRIORITIES: Final = "keys have priorities: `hostler keys set NAME --priority N`"
_TOOLS: Final = "tools are run by clients"
_ELSEWHERE: Final = (
    "figures are at /metrics, and traces go over OTLP to gateway.tracing.endpoint, of any service that takes them"
)


class _Service(msgspec.Struct, frozen=True):
    """A service that takes OTLP. Variables in its headers are written `{NAME}`."""

    endpoint: str
    headers: Mapping[str, str]
    hint: str = ""


_LANGFUSE: Final = _Service(
    "https://cloud.langfuse.com/api/public/otel/v1/traces",
    {"Authorization": "Basic {LANGFUSE_AUTHORIZATION}"},
    "; set the variable LANGFUSE_AUTHORIZATION to the base64 of PUBLIC_KEY:SECRET_KEY, and the address of another region",
)
_SERVICES: Final[Mapping[str, _Service]] = {
    "langfuse": _LANGFUSE,
    "langfuse_otel": _LANGFUSE,
    "langsmith": _Service("https://api.smith.langchain.com/otel/v1/traces", {"x-api-key": "{LANGSMITH_API_KEY}"}),
    "arize": _Service(
        "https://otlp.arize.com/v1/traces", {"space_id": "{ARIZE_SPACE_ID}", "api_key": "{ARIZE_API_KEY}"}
    ),
    "arize_phoenix": _Service("https://app.phoenix.arize.com/v1/traces", {"Authorization": "Bearer {PHOENIX_API_KEY}"}),
    "braintrust": _Service(
        "https://api.braintrust.dev/otel/v1/traces", {"Authorization": "Bearer {BRAINTRUST_API_KEY}"}
    ),
    "datadog": _Service(
        "http://localhost:4318/v1/traces", {}, ", of Datadog's agent on this machine with its OTLP receiver"
    ),
    "datadog_llm_observability": _Service(
        "http://localhost:4318/v1/traces", {}, ", of Datadog's agent on this machine with its OTLP receiver"
    ),
    "deepeval": _Service("https://otel.confident-ai.com/v1/traces", {"x-confident-api-key": "{CONFIDENT_API_KEY}"}),
    "langtrace": _Service("https://app.langtrace.ai/api/trace", {"x-api-key": "{LANGTRACE_API_KEY}"}),
    "logfire": _Service("https://logfire-api.pydantic.dev/v1/traces", {"Authorization": "{LOGFIRE_TOKEN}"}),
    "mlflow": _Service(
        "http://localhost:5000/v1/traces",
        {"x-mlflow-experiment-id": "0"},
        "; set the address of MLflow's server, from version 3.6 on, and the number of the experiment",
    ),
    "newrelic": _Service("https://otlp.nr-data.net/v1/traces", {"api-key": "{NEW_RELIC_LICENSE_KEY}"}),
    "opik": _Service(
        "https://www.comet.com/opik/api/v1/private/otel/v1/traces",
        {"Authorization": "{OPIK_API_KEY}", "Comet-Workspace": "{OPIK_WORKSPACE}"},
    ),
    "traceloop": _Service("https://api.traceloop.com/v1/traces", {"Authorization": "Bearer {TRACELOOP_API_KEY}"}),
}


class CallbackReader:
    """Sets `gateway.tracing` for the callbacks that trace, and says what becomes of the others."""

    def __init__(self, report: ImportReport, variables: Mapping[str, Any]) -> None:
        """`variables` are those of the file: the collector that one names is preferred to services."""
        self._report = report
        written = (str(variables.get(name)) for name in _COLLECTORS)
        self._collector = next((value for value in written if _URL.fullmatch(value)), "")
        self._address = self._collector
        self.traces = False

    def notes(self, given: Any) -> list[tuple[NoteKind, str]]:
        """What becomes of the callbacks that a setting lists."""
        found = given if isinstance(given, list) else [given]
        names = [str(next(iter(each), "")) if isinstance(each, dict) else str(each) for each in found if each]
        return [self._callback(name) for name in names] or [("taken", "there are none here, too")]

    def _callback(self, name: str) -> tuple[NoteKind, str]:
        if name in _METRICS:
            return "taken", f"{name}: figures are at /metrics"
        if name in _OTEL:
            self.traces = True
            return "changed", f"{name}: traces go to gateway.tracing.endpoint; set it"
        if name in _SERVICES:
            return self._trace(name, _SERVICES[name])
        if name.startswith("dynamic_rate_limiter"):
            return "missing", f"{name}: {PRIORITIES}"
        if name.endswith("_interception"):
            return "missing", f"{name}: {_TOOLS}"
        if "." in name:
            return (
                "missing",
                f"{name}: Python code of the proxy is not run; ASGI middleware can be added, or see GET /events",
            )
        return "missing", f"{name}: {_ELSEWHERE}"

    def _trace(self, name: str, service: _Service) -> tuple[NoteKind, str]:
        if self._address not in ("", service.endpoint):
            self.traces = self.traces or bool(self._collector)
            return "missing", f"{name}: traces go to one address, {self._address}, which may pass them on"
        self._address = service.endpoint
        self._report.set("gateway", "tracing", "endpoint", value=service.endpoint)
        headers = {
            key: re.sub(r"\{(\w+)\}", lambda match: reference(match[1]), value)
            for key, value in service.headers.items()
        }
        self._report.set("gateway", "tracing", "headers", value=headers)
        return "changed", f"{name}: traces without contents go to gateway.tracing.endpoint; {_INSTALL}{service.hint}"

    def variable(self, name: str, value: str) -> str | None:
        """What becomes of a variable with the address of a collector; `None` for other variables."""
        if name not in _COLLECTORS or not self.traces or not _URL.fullmatch(value):
            return None
        self._report.set("gateway", "tracing", "endpoint", value=value.rstrip("/") + _COLLECTORS[name])
        return f"gateway.tracing.endpoint; {_INSTALL}"
