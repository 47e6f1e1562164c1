"""What becomes of the keys in LiteLLM's sections of settings that need no more than a note, or a number at its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from hostler.gateway.importing.litellm_callbacks import PRIORITIES
from hostler.gateway.importing.report import NoteKind
from hostler.gateway.importing.yaml_source import is_number

_Number = tuple[tuple[str, ...], Callable[[float], Any], str]
#: Settings that are a number: their place here, and what is different there.
NUMBERS: Final[Mapping[str, _Number]] = {
    "request_timeout": (("gateway", "timeouts", "first_byte_s"), float, "the limit of the time to the first byte"),
    "timeout": (("gateway", "timeouts", "first_byte_s"), float, "the limit of the time to the first byte"),
    "stream_timeout": (("gateway", "timeouts", "between_bytes_s"), float, "the limit of the time between two bytes"),
    "allowed_fails": (("breaker", "failures"), lambda number: int(number) + 1, ""),
    "cooldown_time": (("breaker", "open_s"), float, ""),
    "health_check_interval": (("gateway", "probing", "every_s"), float, ""),
    "max_request_size_mb": (("gateway", "max_body"), lambda number: int(number * 1024 * 1024), ""),
    "max_parallel_requests": (("gateway", "queue", "max_waiting"), int, "the length of the queue of each host"),
}

#: Settings for headers of clients that go on to providers, and the headers.
FORWARDED: Final[Mapping[str, str]] = {
    "forward_client_headers_to_llm_api": "x-*",
    "forward_openai_org_id": "openai-organization",
}

_KEY_LIMITS = "what a key may do is its scopes, models and limits: `hostler keys set`"
_ONLY_KEYS = "clients are known by API keys alone"
_NO_ALERTS = "alerts are rules of Prometheus: deploy/alerts.yaml"
_NO_CACHE = "answers are not cached"
_NO_CHECKS = "contents of requests and answers are not checked"
_NO_TAGS = "requests are not routed by tags: give models names of their own, and keys the models that they may use"
_NO_TEAMS = "there are no teams: limits and models are those of keys"
_NO_TOOLS = "tools are run by clients"
_NO_HEADERS = "headers of clients are passed on where forward_headers of a backend names them"
_AFFINITY = "a conversation goes to the host that has it in memory; other backends are tried in the order of the chain"
_NO_LABELS = "metrics have the labels in docs/operations.md, keys and models among them"
_OWN_PRICES = "costs are those of answers, else of backends.NAME.prices: put there what you charge"
_RECORDS = (
    "requests are logged as lines of JSON with gateway.logging.format, and contents recorded with gateway.recording"
)
_AUDIT = "what operators and keys change is logged as hostler.audit"
_ONE_LIMIT = "costs are limited for all backends and for keys, not for one backend"
_OPENSSL = "TLS follows the settings of OpenSSL on this machine: a file that OPENSSL_CONF names can change them"
_NO_USERS = "there are no users: clients are known by their keys, and limits are those of keys"
_NO_PROMPTS = "prompts are those of clients; a profile adds a text with request.system"
_NO_PYTHON = "Python code of the proxy is not run: ASGI middleware can be added, and engines run any program"
#: Keys without a counterpart, and what there is instead. Where one of them is `false`, nothing is lost.
INSTEAD: Final[Mapping[str, str]] = {
    "cache": _NO_CACHE,
    "cache_params": _NO_CACHE,
    "alerting": _NO_ALERTS,
    "alerting_args": _NO_ALERTS,
    "alerting_threshold": _NO_ALERTS,
    "alert_types": _NO_ALERTS,
    "alert_to_webhook_url": _NO_ALERTS,
    "spend_report_frequency": _NO_ALERTS,
    "database_url": "there is no database: keys are in a file, gateway.api_keys_file, so virtual keys have to be made anew",
    "store_prompts_in_spend_logs": "contents are recorded with gateway.recording.contents alone",
    "allowed_routes": _KEY_LIMITS,
    "admin_only_routes": _KEY_LIMITS,
    "public_routes": _KEY_LIMITS,
    "enforce_user_param": _KEY_LIMITS,
    "enforced_params": _KEY_LIMITS,
    "service_account_settings": _KEY_LIMITS,
    "upperbound_key_generate_params": _KEY_LIMITS,
    "default_key_generate_params": _KEY_LIMITS,
    "key_generation_settings": _KEY_LIMITS,
    "custom_key_generate": _KEY_LIMITS,
    "enable_jwt_auth": _ONLY_KEYS,
    "litellm_jwtauth": _ONLY_KEYS,
    "enable_oauth2_auth": _ONLY_KEYS,
    "enable_oauth2_proxy_auth": _ONLY_KEYS,
    "oauth2_config_mappings": _ONLY_KEYS,
    "custom_auth": _ONLY_KEYS,
    "custom_sso": _ONLY_KEYS,
    "allowed_ips": "addresses are for the firewall, or for the reverse proxy in front",
    "use_x_forwarded_for": "name the proxies that are trusted in gateway.trusted_proxies",
    "key_management_system": "secrets are variables (${env:NAME}) and files (api_key_file)",
    "key_management_settings": "secrets are variables (${env:NAME}) and files (api_key_file)",
    "litellm_key_header_name": "keys come as Authorization, x-api-key or api-key",
    "global_max_parallel_requests": "requests at a time are limited by backend, profile and key",
    "default_max_parallel_requests": "requests at a time are limited by backend, profile and key",
    "disable_cooldowns": "a backend that fails is always left out for a while: section breaker",
    "completion_model": "a request without a model goes to the loaded one, else to the profile with default: true",
    "embedding_model": "the model is the one that a request names",
    "image_generation_model": "the model is the one that a request names",
    "moderation_model": "the model is the one that a request names",
    "forward_client_headers_to_llm_api": _NO_HEADERS,
    "forward_llm_provider_auth_headers": "keys of clients are never passed on",
    "forward_openai_org_id": _NO_HEADERS,
    "add_user_information_to_llm_headers": _NO_HEADERS,
    "custom_prometheus_metadata_labels": _NO_LABELS,
    "custom_prometheus_tags": _NO_LABELS,
    "prometheus_emit_stream_label": _NO_LABELS,
    "cost_margin_config": _OWN_PRICES,
    "cost_discount_config": _OWN_PRICES,
    "provider_budget_config": _ONE_LIMIT,
    "priority_reservation": PRIORITIES,
    "priority_reservation_settings": PRIORITIES,
    "s3_callback_params": _RECORDS,
    "callback_settings": _RECORDS,
    "log_raw_request_response": _RECORDS,
    "store_prompts_in_cold_storage": _RECORDS,
    "cold_storage_custom_logger": _RECORDS,
    "audit_log_callbacks": _AUDIT,
    "block_robots": "robots.txt is for the reverse proxy in front; without a key robots get nothing",
    "health_check_details": "details of backends are in GET /admin/status, for keys with the scope read",
    "health_check_ignore_transient_errors": "what counts as a failure depends on its kind; see docs/operations.md",
    "enable_azure_ad_token_refresh": "Azure wants a sign-in of its own there; use an API key: api_key",
    "REPEATED_STREAMING_CHUNK_LIMIT": "answers that repeat themselves go on; gateway.timeouts and max_tokens end them",
    "always_include_stream_usage": "streams end with their usage where clients ask for it",
    "enable_json_schema_validation": "answers are passed on as the model wrote them",
    "include": "import each file by itself",
    "tag_routing": _NO_TAGS,
    "worker_registry": "gateways of a cluster find each other in cluster.store",
    "network_mock": "answers are not made up",
    "timezone": "days of limits end at local midnight: set TZ where Hostler is started",
    "allow_client_side_credentials": "keys of clients are never passed on",
    "content_policy_fallbacks": "an answer of a model is never asked for again",
    "enable_tag_filtering": _NO_TAGS,
    "tag_filtering_match_any": _NO_TAGS,
    "default_team_settings": f"{_NO_TEAMS}; all traces go to gateway.tracing.endpoint",
    "default_team_params": _NO_TEAMS,
    "default_internal_user_params": _NO_TEAMS,
    "default_team_disabled": _NO_TEAMS,
    "custom_team_metadata_validate": _NO_TEAMS,
    "team_metadata_validation_timeout": _NO_TEAMS,
    "team_metadata_validation_error_message": _NO_TEAMS,
    "pass_through_endpoints": "paths are those of the protocols; a server that speaks one can be a backend",
    "include_cost_in_streaming_usage": "costs are in GET /admin/keys, the dashboard and /metrics, not in answers",
    "max_response_size_mb": "answers are passed on as they come; gateway.timeouts limit them",
    "maximum_spend_logs_retention_period": "the history is kept by size and age: gateway.history",
    "websearch_interception_params": _NO_TOOLS,
    "code_interpreter_interception_params": _NO_TOOLS,
    "mcp_aliases": _NO_TOOLS,
    "guardrails": _NO_CHECKS,
    "policies": _NO_CHECKS,
    "policy_attachments": _NO_CHECKS,
    "prompts": _NO_PROMPTS,
    "search_tools": _NO_TOOLS,
    "sandbox_tools": _NO_TOOLS,
    "mcp_servers": _NO_TOOLS,
    "mcp_tools": _NO_TOOLS,
    "vector_store_registry": "there are no vector stores",
    "finetune_settings": "there is no fine-tuning",
    "enable_redis_auth_cache": "keys are read from a file, or shared with `hostler config push keys`",
    "enable_caching_on_provider_specific_optional_params": _NO_CACHE,
    "ssl_security_level": _OPENSSL,
    "ssl_ecdh_curve": _OPENSSL,
    "token_rate_limit_type": "limits of keys count the tokens of prompts and answers together",
    "route_all_chat_openai_to_responses": "requests go to OpenAI in the API that the client uses",
    "reasoning_auto_summary": "clients ask for summaries of reasoning: reasoning.summary",
    "return_response_headers": "headers of providers are not passed on to clients",
    "enable_model_config_credential_overrides": f"{_NO_TEAMS}; a backend has one API key",
    "custom_provider_map": _NO_PYTHON,
    "post_call_rules": _NO_PYTHON,
    "control_plane_url": "gateways of a cluster share configuration in cluster.store",
    "llm_guard_mode": _NO_CHECKS,
    "compression_interception_params": _NO_CHECKS,
    "UI_USERNAME": "the dashboard is opened with an API key",
    "UI_PASSWORD": "the dashboard is opened with an API key",
    "alert_type_config": _NO_ALERTS,
    "langfuse_default_tags": "traces have no tags",
    "datadog_api_key": "traces go to Datadog's agent, which has the key: gateway.tracing.endpoint",
    "callbacks": "belongs in litellm_settings: LiteLLM does not read it here, either",
    "default_litellm_params": "belongs in litellm_settings: LiteLLM does not read it here, either",
}
#: Beginnings and ends of further keys without a counterpart, and what there is instead.
_FAMILIES: Final = (
    (re.compile(r"mcp_|.*_mcp_|enable_mcp"), _NO_TOOLS),
    (re.compile(r"(vertex|default_vertex|bedrock|aws|sagemaker)_"), "is for a provider with a protocol of its own"),
    (re.compile(r"global_(prompt|bitbucket|gitlab|dotprompt)"), _NO_PROMPTS),
    (re.compile(r"argilla_|.*_callback_params$"), _RECORDS),
    (re.compile(r"langfuse_\w+_key"), "keys of services are variables, named in gateway.tracing.headers"),
    (
        re.compile(r"(banned|blocked|llamaguard|\w+_moderation|toxic|azure_content_safety|presidio|prompt_inj)"),
        _NO_CHECKS,
    ),
    (re.compile(r".*(guardrail|content_safety)"), _NO_CHECKS),
    (re.compile(r".*internal_user|user_header|role_|.*end_user|.*customer"), _NO_USERS),
    (re.compile(r"custom_(auth|ui_sso)"), _ONLY_KEYS),
    (re.compile(r"tag_"), _NO_TAGS),
    (re.compile(r"alert"), _NO_ALERTS),
    (re.compile(r"ui_theme"), "the dashboard has no themes"),
)
#: Keys about parts that do not exist here.
MEANINGLESS: Final[Mapping[str, str]] = dict.fromkeys(
    (
        *("store_model_in_db", "supported_db_objects", "proxy_batch_write_at", "proxy_budget_rescheduler_min_time"),
        *("proxy_budget_rescheduler_max_time", "database_connection_pool_limit", "database_connection_timeout"),
        *("disable_prisma_schema_update", "use_redis_transaction_buffer", "allow_requests_on_db_unavailable"),
        *("disable_adding_master_key_hash_to_db", "disable_spend_updates", "disable_error_logs"),
        *("user_api_key_cache_ttl", "disable_reset_budget", "maximum_spend_logs_retention_interval"),
    ),
    "there is no database",
) | {
    "ui_access_mode": "the dashboard is for keys with the scope read, and its actions for operate",
    "litellm_license": "there is no paid edition",
    "disable_copilot_system_to_assistant": "is obsolete",
    "disable_hf_tokenizer_download": "tokenizers are never downloaded",
    "client_ttl": "connections are kept as long as servers allow",
    "proxy_batch_polling_interval": "batches are carried out here, without polling",
    "disable_add_user_agent_to_request_tags": "requests have no tags",
    "extra_spend_tag_headers": "requests have no tags",
    "prometheus_initialize_budget_metrics": "metrics of budgets are there once a key has one",
    "langsmith_batch_size": "traces are sent in batches of OpenTelemetry's own size",
    "disable_retry_on_max_parallel_request_limit_error": "requests beyond a limit wait, or go to the next backend",
}
#: What happens instead of what the key says.
CHANGED: Final[Mapping[str, str]] = {
    "routing_strategy": "backends are tried in the order of gateway.chain, hosts that are nearest to serving a model first",
    "routing_strategy_args": "backends are tried in the order of gateway.chain",
    "drop_params": "parameters that a protocol lacks are left out in any case",
    "modify_params": "requests are translated for backends of other protocols in any case",
    "num_retries": "the next backend of the chain is tried, and the same one is not",
    "retry_after": "the next backend of the chain is tried, and the same one is not",
    "retry_policy": "what follows an error depends on its kind; see docs/operations.md",
    "allowed_fails_policy": "breaker.failures holds for all failures; rejected requests do not count",
    "disable_spend_logs": "figures of requests are kept without their contents",
    "max_fallbacks": "all backends of the chain are tried, within the retry budget",
    "otel": "set gateway.tracing.endpoint to where traces go",
    "files_settings": "files and batches are the gateway's own, for all models: docs/operations.md",
    "deployment_affinity_ttl_seconds": _AFFINITY,
    "model_group_affinity_config": _AFFINITY,
    "use_shared_health_check": "each gateway checks its backends itself",
    "enable_loadbalancing_on_batch_endpoints": "batches are the gateway's own, and their requests take the chain",
    "prometheus_metrics_config": "all metrics are at /metrics; metric_relabel_configs of Prometheus leaves some out",
    "force_ipv4": "addresses of both families are tried at once",
}
#: What Hostler does without a setting, while the value is true.
ALWAYS: Final[Mapping[str, str]] = {
    "background_health_checks": "backends are checked in the background",
    "enable_pre_call_checks": "a backend whose context is too small is skipped",
    "enable_pre_call_check": "a backend whose context is too small is skipped",
    "enable_health_check_routing": "a backend that fails its health checks is skipped",
    "store_audit_logs": _AUDIT,
    "redact_messages_in_exceptions": "errors in the log do not have the contents of requests",
    "turn_off_message_logging": "prompts and answers are not recorded unless gateway.recording.contents is set",
    "redact_user_api_key_info": "keys are named in logs, never shown",
    "disable_master_key_return": "keys are never shown",
    "disable_end_user_cost_tracking": "costs are counted for keys, not for users that requests name",
    "disable_end_user_cost_tracking_prometheus_only": "costs are counted for keys, not for users that requests name",
    "reject_clientside_metadata_tags": "tags in requests have no effect on limits and routes",
    "global_disable_no_log_param": "requests are logged whatever a client asks for",
    "disable_add_transform_inline_image_block": "nothing is added to the addresses of images",
    "check_provider_endpoint": "a name with a star lists the models that its backend reports",
    "require_auth_for_metrics_endpoint": "/metrics needs a key with the scope read wherever keys are required",
}
#: What Hostler does without a setting, while the value is false.
NEVER: Final[Mapping[str, str]] = {
    "telemetry": "no usage data is sent",
    "disable_responses_id_security": "stored responses are found by the key that made them alone",
    "allow_dynamic_callback_disabling": "clients cannot turn off metrics and traces",
    "infer_model_from_keys": "models are those that the file names",
}

#: Checks of LiteLLM before a request is sent, and what there is of them.
_CHECKS: Final[Mapping[str, tuple[NoteKind, str]]] = {
    "enforce_model_rate_limits": ("taken", "limits of backends always hold"),
    "responses_api_deployment_check": ("taken", "responses are stored by the gateway, whichever backend answers"),
    **dict.fromkeys(
        ("prompt_caching", "session_affinity", "deployment_affinity", "encrypted_content_affinity"),
        ("changed", _AFFINITY),
    ),
    "forward_client_headers_by_model_group": ("changed", _NO_HEADERS),
    "router_budget_limiting": ("missing", _ONE_LIMIT),
}


def note_of_check(name: Any) -> tuple[NoteKind, str]:
    """What becomes of an entry of `optional_pre_call_checks`."""
    kind, text = _CHECKS.get(str(name), ("missing", "there is no such check"))
    return kind, f"{name}: {text}"


def note_of(key: str, value: Any) -> tuple[NoteKind, str]:
    """What becomes of a key that has no place of its own here."""
    if key in CHANGED:
        return "changed", CHANGED[key]
    if (key in ALWAYS and value is True) or (key in NEVER and value is False):
        return "taken", ALWAYS.get(key) or NEVER[key]
    if key in MEANINGLESS:
        return "meaningless", MEANINGLESS[key]
    if key in INSTEAD and value is False:
        return "taken", "is off here, too"
    if key in ALWAYS:
        return "missing", f"cannot be turned off: {ALWAYS[key]}"
    if key in NEVER:
        return "missing", f"cannot be turned on: {NEVER[key]}"
    family = (text for pattern, text in _FAMILIES if pattern.match(key))
    return "missing", INSTEAD.get(key) or next(family, "Hostler has no such setting")


def positive(value: Any) -> float | None:
    """The value, if it is a positive number."""
    return value if is_number(value) and value > 0 else None
