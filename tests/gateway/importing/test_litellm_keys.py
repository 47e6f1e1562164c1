"""LiteLLM's settings beside the list of models: what each key of its documentation becomes."""

from __future__ import annotations

import pytest

from hostler.gateway.importing.litellm import import_litellm
from hostler.gateway.importing.report import Imported

SETTINGS = """\
litellm_settings:
  success_callback: [langfuse]
  callbacks: [otel, prometheus]
  turn_off_message_logging: true
  redact_user_api_key_info: true
  request_timeout: 10
  telemetry: false
  json_logs: true
  default_fallbacks: [b]
  content_policy_fallbacks: [{a: [b]}]
  context_window_fallbacks: [{a: [b]}]
  mcp_aliases: {git: server}
  cache: true
  cache_params: {type: redis, host: cache.lan}
  default_team_settings: [{team_id: t}]
callback_settings: {otel: {message_logging: false}}
general_settings:
  completion_model: a
  disable_spend_logs: true
  disable_reset_budget: true
  enable_jwt_auth: false
  enforce_user_param: true
  master_key: sk-master
  database_url: postgresql://db.lan/x
  database_connection_pool_limit: 4
  store_model_in_db: true
  max_parallel_requests: 12
  background_health_checks: true
  health_check_interval: 20
  alerting: [slack]
  coordination_redis: {host: os.environ/STORE, port: 6380, password: os.environ/STORE_KEY}
  pass_through_endpoints: [{path: /x, target: "https://x.example"}]
router_settings:
  routing_strategy: least-busy
  enable_pre_call_checks: true
  allowed_fails: 2
  disable_cooldowns: true
  enable_tag_filtering: true
  retry_policy: {TimeoutErrorRetries: 1}
guardrails: [{guardrail_name: g, litellm_params: {guardrail: x, mode: pre_call}}]
files_settings: [{custom_llm_provider: openai}]
finetune_settings: [{custom_llm_provider: openai}]
environment_variables: {OTEL_EXPORTER_OTLP_ENDPOINT: "http://collector.lan:4318/", REDIS_PORT: }
model_list:
  - {model_name: a, litellm_params: {model: groq/a}}
  - {model_name: b, litellm_params: {model: groq/b}}
  - {model_name: c, litellm_params: {model: bedrock/c, aws_region_name: eu-west-1}}
"""

MISSING = {
    "litellm_settings.success_callback", "litellm_settings.content_policy_fallbacks", "litellm_settings.mcp_aliases",
    "litellm_settings.cache", "litellm_settings.cache_params", "litellm_settings.default_team_settings",
    "general_settings.completion_model", "general_settings.enforce_user_param",
    "general_settings.database_url", "general_settings.alerting", "general_settings.pass_through_endpoints",
    "router_settings.disable_cooldowns", "router_settings.enable_tag_filtering", "guardrails", "finetune_settings",
    "model_list[2]",
}  # fmt: skip
MEANINGLESS = {
    "general_settings.disable_reset_budget", "general_settings.database_connection_pool_limit",
    "general_settings.store_model_in_db", "environment_variables.REDIS_PORT",
}  # fmt: skip


def translate(text: str) -> Imported:
    return import_litellm(text, "config.yaml", prefix="hostler")


def kinds(imported: Imported, kind: str) -> set[str]:
    return {note.key for note in imported.notes if note.kind == kind}


def test_exactly_these_keys_are_not_taken_over() -> None:
    imported = translate(SETTINGS)
    assert (kinds(imported, "missing"), kinds(imported, "meaningless")) == (MISSING, MEANINGLESS)
    assert all(note.line and note.text for note in imported.notes if note.kind != "taken")


def test_every_key_of_the_file_is_in_the_report() -> None:
    noted = {note.key for note in translate(SETTINGS).notes}
    sections = {"litellm_settings", "general_settings", "router_settings"}
    section = ""
    for line in SETTINGS.splitlines():
        key = line.strip().partition(":")[0]
        if not line.startswith(" "):
            section = key
        elif section in sections:
            assert any(each.startswith(f"{section}.{key}") for each in noted), key


def test_redis_of_several_instances_is_the_store_of_a_cluster() -> None:
    imported = translate("router_settings: {redis_host: s.lan, redis_port: 7000, redis_password: 'a:b'}\n")
    assert imported.sections["cluster"]["store"] == "redis://:${env:STORE_PASSWORD}@s.lan:7000"
    assert imported.secret_files == {"hostler.env": "STORE_PASSWORD='a%3Ab'\n"}
    assert "a:b" not in str(imported.notes)
    imported = translate("router_settings: {redis_url: 'rediss://me:p%40ss@s.lan:7000/1'}\n")
    assert imported.sections["cluster"]["store"] == "rediss://me:${env:STORE_PASSWORD}@s.lan:7000/1"
    assert imported.secret_files["hostler.env"] == "STORE_PASSWORD='p%40ss'\n"
    assert translate(SETTINGS).sections["cluster"]["store"] == "redis://:${env:STORE_KEY}@${env:STORE}:6380"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("{redis_port: 1}", "there is no host"),
        ("{redis_host: '<your host>'}", "is not the name of a host"),
        ("{redis_host: h, redis_port: many}", "is not a port"),
        ("{redis_url: 'http://h'}", "is not an address"),
        ("{redis_host: h, redis_password: 'a\tb', redis_port: 99999999}", "is not a port"),
    ],
)
def test_a_store_that_cannot_be_is_said(settings: str, why: str) -> None:
    imported = translate(f"router_settings: {settings}\n")
    assert "cluster" not in imported.sections
    assert [note.kind for note in imported.notes] == ["missing"] * len(imported.notes)
    assert why in imported.notes[0].text


def test_traces_go_where_the_variable_says() -> None:
    assert translate(SETTINGS).sections["gateway"]["tracing"] == {"endpoint": "http://collector.lan:4318/v1/traces"}
    assert "tracing" not in translate("environment_variables: {OTEL_ENDPOINT: 'http://c'}\n").sections.get(
        "gateway", {}
    )


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        ("enable_jwt_auth: false", "taken"),
        ("enable_jwt_auth: true", "missing"),
        ("telemetry: true", "missing"),
        ("require_auth_for_metrics_endpoint: false", "missing"),
        ("require_auth_for_metrics_endpoint: true", "taken"),
        ("allow_dynamic_callback_disabling: false", "taken"),
        ("allow_dynamic_callback_disabling: true", "missing"),
        ("check_provider_endpoint: true", "taken"),
        ("global_disable_no_log_param: true", "taken"),
        ("never_heard_of_it: 1", "missing"),
        ("never_heard_of_it: false", "missing"),
    ],
)
def test_what_is_off_in_both_is_taken_over(setting: str, kind: str) -> None:
    (note,) = translate(f"litellm_settings: {{{setting}}}\n").notes
    assert (note.kind, note.line, bool(note.text)) == (kind, 1, True)


def test_limits_beside_the_parameters_are_those_of_the_backend() -> None:
    imported = translate("model_list: [{model_name: m, litellm_params: {model: groq/x}, rpm: 3, tpm: 20000}]\n")
    assert imported.sections["backends"]["groq"]["limits"] == {"requests_per_minute": 3, "tokens_per_minute": 20000}
    assert not kinds(imported, "missing")


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ("{model: somebody/x}", "somebody is no known provider"),
        ("{model: vertex_ai/x}", "a protocol of its own"),
        ("{api_key: k}", "needs a name, and a model"),
        ("{model: 'openai/a-*-*'}", "only one * is allowed in a name"),
        ("{model: azure/, api_base: 'https://a.example'}", "names no model of azure"),
    ],
)
def test_a_deployment_that_is_not_taken_over_is_said_once(parameters: str, why: str) -> None:
    imported = translate(f"model_list: [{{model_name: m, litellm_params: {parameters}}}]\n")
    assert "backends" not in imported.sections
    (note,) = [each for each in imported.notes if each.kind == "missing"]
    assert note.key == "model_list[0]" and why in note.text
    assert [each.text for each in imported.notes if each.key == "model_list"] == ["0 of 1 deployments"]


@pytest.mark.parametrize(
    ("parameters", "url"),
    [
        ("{model: somebody/x, api_base: 'http://h/v1'}", "http://h/v1"),
        ("{model: huggingface/o/m, api_base: 'https://h/'}", "https://h/v1"),
        ("{model: cohere/c}", "https://api.cohere.ai/compatibility/v1"),
        ("{model: nebius/x}", "https://api.studio.nebius.ai/v1"),
    ],
)
def test_providers_have_their_addresses(parameters: str, url: str) -> None:
    (backend,) = (
        translate(f"model_list: [{{model_name: m, litellm_params: {parameters}}}]\n").sections["backends"].values()
    )
    assert backend["url"] == url


def test_a_token_of_azure_is_a_secret() -> None:
    given = "{model: azure/x, api_base: 'https://a.example', azure_ad_token: very-secret}"
    imported = translate(f"model_list: [{{model_name: m, litellm_params: {given}}}]\n")
    assert imported.secret_files == {"hostler.azure.key": "very-secret\n"}
    assert "very-secret" not in str(imported.notes)


def test_facts_that_do_more_than_describe_are_said() -> None:
    info = "{id: one, access_groups: [beta], custom_tokenizer: {identifier: x}, mode: responses}"
    imported = translate(f"model_list: [{{model_name: m, litellm_params: {{model: x}}, model_info: {info}}}]\n")
    about = imported.sections["backends"]["openai"]["describe"]["x"]
    assert about == {"metadata": {"id": "one"}, "capabilities": ["completion"]}
    assert kinds(imported, "missing") == {
        "model_list[0].model_info.access_groups",
        "model_list[0].model_info.custom_tokenizer",
    }


def test_of_two_stores_the_first_one_is_taken_over() -> None:
    text = "router_settings: {redis_host: one}\ngeneral_settings: {coordination_redis: {host: two}}\n"
    imported = translate(text)
    assert imported.sections["cluster"]["store"] == "redis://one"
    found = {each.key: (each.kind, each.text) for each in imported.notes}
    assert found["general_settings.coordination_redis.host"] == ("missing", "cluster.store is that of router_settings")


def test_an_alias_of_no_name_is_not_taken_over() -> None:
    text = (
        'model_list: [{model_name: "*", litellm_params: {model: "openai/*", api_key: os.environ/KEY}}]\n'
        "router_settings: {model_group_alias: {d: [x]}}\n"
    )
    imported = translate(text)
    assert [each["models"] for each in imported.sections["backends"].values()] == [{"*": "*"}]
    assert any(each.kind == "missing" and each.key.endswith("model_group_alias.d") for each in imported.notes)


@pytest.mark.parametrize(
    ("setting", "way_out"),
    [
        ("mcp_semantic_tool_filter: {enabled: true}", "tools are run by clients"),
        ("default_vertex_config: {vertex_project: x}", "a protocol of its own"),
        ("global_bitbucket_config: {workspace: x}", "request.system"),
        ("max_internal_user_budget: 3", "there are no users"),
        ("banned_keywords_list: [x]", "are not checked"),
        ("ssl_ecdh_curve: X25519", "OPENSSL_CONF"),
        ("disable_responses_id_security: true", "cannot be turned on: stored responses"),
        ("never_heard_of_it: 1", "Hostler has no such setting"),
    ],
)
def test_a_key_without_a_counterpart_says_what_there_is_instead(setting: str, way_out: str) -> None:
    (note,) = translate(f"general_settings: {{{setting}}}\n").notes
    assert note.kind == "missing" and way_out in note.text


def test_a_section_at_the_wrong_place_is_said() -> None:
    (note,) = translate("callbacks: [otel]\n").notes
    assert (note.kind, note.key) == ("missing", "callbacks") and "litellm_settings" in note.text


def test_settings_of_callbacks_are_said_one_by_one() -> None:
    notes = translate("callback_settings: {otel: {message_logging: false, x: 1}, own: {}, odd: 3}\n").notes
    assert [(note.kind, note.key) for note in notes] == [
        ("taken", "callback_settings.otel.message_logging"), ("missing", "callback_settings.otel.x"),
        ("missing", "callback_settings.own"), ("missing", "callback_settings.odd"),
    ]  # fmt: skip


@pytest.mark.parametrize(("given", "kind"), [("me/1.0", "taken"), ('"a\\nb: c"', "missing")])
def test_the_name_of_the_client_is_a_header(given: str, kind: str) -> None:
    deployment = f"{{model_name: a, litellm_params: {{model: groq/a, user_agent: {given}}}}}"
    imported = translate(f"model_list: [{deployment}]\n")
    assert kind in {note.kind for note in imported.notes if note.key.endswith("user_agent")}
    headers = imported.sections["backends"]["groq"].get("headers")
    assert headers == ({"User-Agent": "me/1.0"} if kind == "taken" else None)
