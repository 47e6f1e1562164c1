"""LiteLLM's configuration: deployments, fallbacks, budgets, keys."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hostler.gateway.importing.litellm import import_litellm
from hostler.gateway.importing.report import Imported, ImportFailed
from hostler.profiles.profile_edits import sections_text

EVERYTHING = """\
model_list:
  - model_name: smart
    litellm_params:
      model: azure/smart-eu
      api_base: https://one.openai.azure.example/
      api_version: "2024-02-01"
      api_key: os.environ/AZURE_KEY
      rpm: 6
      tpm: 1000
  - model_name: smart
    litellm_params:
      model: openai/smart
      api_key: openai-secret-key
      organization: org-1
      extra_headers: {X-Team: blue}
      temperature: 0.2
      max_tokens: 500
      seed: 3
    model_info:
      mode: chat
      input_cost_per_token: 0.0000025
      output_cost_per_token: 0.00001
      max_input_tokens: 128000
      supports_vision: true
  - model_name: local
    litellm_params: {model: ollama/mistral, api_base: http://127.0.0.1:11434}
  - model_name: shared
    litellm_params: {model: groq/llama, litellm_credential_name: groq-account}
  - model_name: "*"
    litellm_params: {model: "openai/*"}
credential_list:
  - credential_name: groq-account
    credential_values: {api_key: os.environ/GROQ_KEY}
litellm_settings:
  drop_params: true
  num_retries: 3
  request_timeout: 20
  fallbacks: [{local: [smart]}]
  context_window_fallbacks: [{smart: [shared]}]
  allowed_fails: 3
  set_verbose: false
  json_logs: true
  max_budget: 60
  budget_duration: 30d
  success_callback: [lunary]
router_settings:
  routing_strategy: simple-shuffle
  model_group_alias: {clever: smart}
  cooldown_time: 15
general_settings:
  master_key: master-secret-key
  alerting: [slack]
environment_variables:
  REDIS_HOST: localhost
"""


def translate(text: str) -> Imported:
    return import_litellm(text, "config.yaml", prefix="hostler")


def backends(text: str) -> Any:
    return translate(text).sections["backends"]


def one(parameters: str) -> Any:
    return backends(f"model_list:\n  - model_name: m\n    litellm_params: {{{parameters}}}\n")


def test_a_deployment_becomes_a_backend() -> None:
    found = backends(EVERYTHING)
    assert found["azure"]["url"] == "https://one.openai.azure.example/openai/v1"
    assert found["azure"]["models"] == {"smart": "smart-eu", "clever": "smart-eu"}
    openai = found["openai"]
    assert openai["headers"] == {"X-Team": "blue", "OpenAI-Organization": "org-1"}
    assert openai["request"] == {"default": {"temperature": 0.2, "max_tokens": 500, "seed": 3}}
    assert openai["prices"]["smart"] == {"input": 2.5, "output": 10.0}
    assert openai["describe"]["smart"] == {"capabilities": ["completion", "vision"], "context": 128000}


def test_headers_that_a_backend_cannot_have_are_left_out_and_said() -> None:
    headers = "{X-Team: blue, X-Empty: '', 'a:b': c, Content-Length: 3, 7: seven}"
    imported = translate(
        f"model_list: [{{model_name: m, litellm_params: {{model: openai/x, extra_headers: {headers}}}}}]"
    )
    assert imported.sections["backends"]["openai"]["headers"] == {"X-Team": "blue", "7": "seven"}
    assert [(note.kind, note.text) for note in imported.notes if note.key.endswith("extra_headers")] == [
        ("missing", "'X-Empty' must be one line of plain text"),
        ("missing", "'a:b' is not the name of a header"),
        ("missing", "'Content-Length' is set by Hostler itself; remove it"),
        ("taken", ""),
    ]


def test_several_deployments_of_a_name_are_tried_in_order() -> None:
    chain = translate(EVERYTHING).sections["gateway"]["chain"]
    assert chain.index("azure") < chain.index("openai")


def test_a_fallback_is_a_later_backend_that_serves_the_same_name() -> None:
    imported = translate(EVERYTHING)
    chain, found = imported.sections["gateway"]["chain"], imported.sections["backends"]
    serving = [name for name in chain if "local" in found[name]["models"]]
    assert [found[name]["models"]["local"] for name in serving] == ["mistral", "smart-eu", "smart"]


def test_secrets_are_references_or_in_files_of_their_own() -> None:
    imported = translate(EVERYTHING)
    text = sections_text(imported.sections)
    assert not re.search("openai-secret-key|master-secret-key", text)
    assert "${env:AZURE_KEY}" in text and "${env:GROQ_KEY}" in text and "${env:OPENAI_API_KEY}" in text
    assert imported.secret_files["hostler.openai.key"] == "openai-secret-key\n"
    assert "master-secret-key" not in "".join(imported.secret_files.values())
    assert not [note for note in imported.notes if "secret" in str(note)]


def test_settings_have_their_places() -> None:
    sections = translate(EVERYTHING).sections
    assert sections["breaker"] == {"failures": 4, "open_s": 15.0}
    assert sections["gateway"]["spending"] == {"daily_limit": 2.0}
    assert sections["gateway"]["timeouts"] == {"first_byte_s": 20.0}
    assert sections["gateway"]["logging"] == {"format": "json"}


def test_what_is_not_taken_over_is_reported_with_its_line() -> None:
    missing = [note for note in translate(EVERYTHING).notes if note.kind == "missing"]
    assert all(note.line and note.text for note in missing)
    assert [note.key for note in missing] == ["litellm_settings.success_callback", "general_settings.alerting"]


def test_limits_of_a_deployment_are_those_of_a_backend_of_its_own() -> None:
    found = backends(EVERYTHING)["azure"]
    assert found["limits"] == {"requests_per_minute": 6, "tokens_per_minute": 1000}
    two = "".join(
        f"  - {{model_name: {name}, litellm_params: {{model: groq/{name}, rpm: 5, timeout: 9, stream_timeout: 3}}}}\n"
        for name in ("a", "b")
    )
    found = backends(f"model_list:\n{two}router_settings: {{model_group_alias: {{c: a}}}}\n")
    assert {name: each["models"] for name, each in found.items()} == {
        "groq": {"a": "a", "c": "a"}, "groq-2": {"b": "b"}
    }  # fmt: skip
    assert found["groq"]["timeouts"] == {"first_byte_s": 9, "between_bytes_s": 3}


def test_variables_are_in_a_file_for_where_hostler_is_started() -> None:
    text = "model_list: []\nenvironment_variables: {A: plain-value, B: 7, 'no name': x, C: \"it's\"}\n"
    imported = translate(text)
    assert imported.secret_files == {"hostler.env": "A='plain-value'\nB='7'\n"}
    assert [note.key for note in imported.notes if note.kind == "missing"] == [
        "environment_variables.no name", "environment_variables.C"
    ]  # fmt: skip
    assert "plain-value" not in str(imported.notes) + sections_text(imported.sections)


def test_callbacks_with_a_counterpart_are_taken_over() -> None:
    notes = translate("model_list: []\nlitellm_settings: {callbacks: [prometheus, otel, sentry]}\n").notes
    assert [(note.kind, note.text.partition(":")[0]) for note in notes if note.key.endswith("callbacks")] == [
        ("taken", "prometheus"), ("changed", "otel"), ("missing", "sentry")
    ]  # fmt: skip


def test_other_facts_of_a_model_are_its_metadata() -> None:
    info = "{mode: chat, version: 2, base_model: gpt-x}"
    found = backends(f"model_list: [{{model_name: m, litellm_params: {{model: x}}, model_info: {info}}}]")
    assert found["openai"]["describe"]["x"]["metadata"] == {"version": 2, "base_model": "gpt-x"}


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        ("router_settings: {enable_pre_call_checks: true}", "taken"),
        ("router_settings: {enable_pre_call_checks: false}", "missing"),
        ("router_settings: {retry_policy: {TimeoutErrorRetries: 3}}", "changed"),
        ("litellm_settings: {turn_off_message_logging: true}", "taken"),
        ("litellm_settings: {cache: true}", "missing"),
    ],
)
def test_what_hostler_does_in_any_case_is_said(setting: str, kind: str) -> None:
    (note,) = [each for each in translate(f"model_list: []\n{setting}\n").notes if "settings." in each.key]
    assert (note.kind, note.line, bool(note.text)) == (kind, 2, True)


@pytest.mark.parametrize(
    ("parameters", "kind", "url", "there"),
    [
        ("model: claude-x", "anthropic", "https://api.anthropic.com", "claude-x"),
        ("model: gpt-x", "openai", "https://api.openai.com/v1", "gpt-x"),
        ("model: openai/org/name, api_base: 'http://h:1/v1/'", "openai", "http://h:1/v1", "org/name"),
        ("model: ollama_chat/x", "ollama", "http://localhost:11434", "x"),
        ("model: name, custom_llm_provider: groq", "openai", "https://api.groq.com/openai/v1", "name"),
    ],
)
def test_the_provider_decides_kind_and_address(parameters: str, kind: str, url: str, there: str) -> None:
    (backend,) = one(parameters).values()
    assert (backend["kind"], backend["url"], backend["models"]["m"]) == (kind, url, there)


def test_parameters_that_no_rule_can_change_are_reported() -> None:
    given = "{model: openai/x, additional_drop_params: [messages], extra_body: {stream: true, top_k: 2}}"
    imported = translate(f"model_list: [{{model_name: m, litellm_params: {given}}}]")
    assert imported.sections["backends"]["openai"]["request"] == {"default": {"top_k": 2}}
    assert [note.text for note in imported.notes if note.kind == "missing"] == [
        "messages cannot be changed by a rule", "stream cannot be changed by a rule",
    ]  # fmt: skip


def test_a_provider_with_a_protocol_of_its_own_is_reported() -> None:
    imported = translate("model_list: [{model_name: m, litellm_params: {model: bedrock/x}}]")
    assert "backends" not in imported.sections
    assert "bedrock speaks a protocol of its own" in str(imported.notes[0])


def test_a_wildcard_passes_names_on() -> None:
    (backend,) = one("model: 'groq/*'").values()
    assert backend["models"] == {"m/*": "*"}


def test_an_address_may_be_a_variable() -> None:
    (backend,) = one("model: azure/x, api_base: os.environ/BASE, api_key: os.environ/KEY").values()
    assert backend["url"] == "${env:BASE}/openai/v1"


@pytest.mark.parametrize("value", [".inf", "-1", "text", "[1]", "1.0e+400"])
def test_odd_numbers_are_reported(value: str) -> None:
    keys = ("allowed_fails", "cooldown_time", "max_parallel_requests", "max_budget")
    imported = translate("litellm_settings:\n" + "".join(f"  {key}: {value}\n" for key in keys))
    assert [note.kind for note in imported.notes] == ["missing"] * 4


@pytest.mark.parametrize("text", ["- 1", "model_list: {a: 1}", "model_list: [7]", "model_list: [", "x: !!map 1"])
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(ImportFailed, match=r"config\.yaml:1"):
        translate(text)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("allowed_routes: [chat]", "its scopes"),
        ("custom_auth: auth.check", "API keys alone"),
        ("global_max_parallel_requests: 9", "limited by backend, profile and key"),
        ("completion_model: m", "the profile with default: true"),
    ],
)
def test_a_setting_without_a_counterpart_says_what_holds_instead(key: str, reason: str) -> None:
    imported = translate(f"model_list: []\ngeneral_settings: {{{key}}}\n")
    assert [reason in note.text for note in imported.notes if note.kind == "missing"] == [True]
