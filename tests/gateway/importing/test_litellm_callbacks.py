"""LiteLLM's callbacks: services that take OTLP get the traces."""

from __future__ import annotations

import pytest

from hostler.gateway.importing.litellm import import_litellm
from hostler.gateway.importing.report import Imported


def translate(callbacks: str, more: str = "") -> Imported:
    return import_litellm(f"litellm_settings: {{callbacks: {callbacks}}}\n{more}", "config.yaml", prefix="hostler")


def said(imported: Imported) -> list[tuple[str, str]]:
    return [(each.kind, each.text) for each in imported.notes if each.key == "litellm_settings.callbacks"]


def test_a_service_that_takes_otlp_gets_the_traces() -> None:
    imported = translate("[logfire]")
    assert imported.sections["gateway"]["tracing"] == {
        "endpoint": "https://logfire-api.pydantic.dev/v1/traces",
        "headers": {"Authorization": "${env:LOGFIRE_TOKEN}"},
    }
    ((kind, text),) = said(imported)
    assert kind == "changed" and "pip install 'hostler[otel]'" in text


def test_traces_go_to_the_first_of_several_services() -> None:
    imported = translate("[langfuse, langsmith]")
    assert imported.sections["gateway"]["tracing"]["endpoint"].startswith("https://cloud.langfuse.com/")
    assert [kind for kind, _ in said(imported)] == ["changed", "missing"]
    assert "traces go to one address, https://cloud.langfuse.com/" in said(imported)[1][1]


def test_a_collector_of_the_file_is_preferred_to_services() -> None:
    imported = translate("[langfuse, otel]", "environment_variables: {OTEL_ENDPOINT: 'http://collector.lan:4318'}\n")
    assert imported.sections["gateway"]["tracing"] == {"endpoint": "http://collector.lan:4318"}
    assert [kind for kind, _ in said(imported)] == ["missing", "changed"]


def test_a_collector_of_the_file_gets_the_traces_without_a_callback_of_its_own() -> None:
    imported = translate("[langfuse]", "environment_variables: {OTEL_ENDPOINT: 'http://collector.lan:4318'}\n")
    assert imported.sections["gateway"]["tracing"] == {"endpoint": "http://collector.lan:4318"}
    ((kind, text),) = said(imported)
    assert kind == "missing" and "traces go to one address, http://collector.lan:4318, which" in text


@pytest.mark.parametrize("value", ["os.environ/OTEL_ENDPOINT", "collector.lan:4317", "in_memory"])
def test_a_collector_without_an_address_here_leaves_the_traces_to_a_service(value: str) -> None:
    imported = translate("[langfuse]", f"environment_variables: {{OTEL_ENDPOINT: '{value}'}}\n")
    assert imported.sections["gateway"]["tracing"]["endpoint"].startswith("https://cloud.langfuse.com/")


@pytest.mark.parametrize(
    ("callbacks", "kind", "text"),
    [
        ("[]", "taken", "there are none"),
        ("[{websearch_interception: {enabled_providers: [openai]}}]", "missing", "websearch_interception: tools are"),
        ("my_module.handler", "missing", "my_module.handler: Python code of the proxy is not run"),
        ("[lago]", "missing", "lago: figures are at /metrics"),
    ],
)
def test_other_callbacks_say_what_there_is_instead(callbacks: str, kind: str, text: str) -> None:
    ((found, why),) = said(translate(callbacks))
    assert found == kind and why.startswith(text)


def test_a_variable_that_stays_one_is_taken_over() -> None:
    imported = import_litellm("environment_variables: {A: os.environ/A}\n", "config.yaml", prefix="hostler")
    assert [(each.kind, each.text) for each in imported.notes] == [("taken", "is set where Hostler is started")]
    assert not imported.secret_files


def test_a_check_before_requests_is_said_one_by_one() -> None:
    text = "router_settings: {optional_pre_call_checks: [enforce_model_rate_limits, prompt_caching, no_such_check]}\n"
    imported = import_litellm(text, "config.yaml", prefix="hostler")
    assert [each.kind for each in imported.notes] == ["taken", "changed", "missing"]


def test_the_trace_of_a_request_goes_on_at_the_provider() -> None:
    text = "litellm_settings: {forward_traceparent_to_llm_provider: true}\n"
    imported = import_litellm(text, "config.yaml", prefix="hostler")
    assert imported.sections["gateway"]["tracing"] == {"to_clouds": True}


def test_mlflow_gets_the_traces_at_its_usual_address() -> None:
    imported = translate("[mlflow]")
    assert imported.sections["gateway"]["tracing"] == {
        "endpoint": "http://localhost:5000/v1/traces",
        "headers": {"x-mlflow-experiment-id": "0"},
    }
    assert "3.6" in said(imported)[0][1]


def test_shares_of_limits_are_priorities_of_keys() -> None:
    ((kind, text),) = said(translate("[dynamic_rate_limiter_v3]"))
    assert kind == "missing" and "hostler keys set NAME --priority N" in text
