"""The deployments of LiteLLM's `model_list` as backends: one for each server, key and set of parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from hostler.gateway.backend_settings import header_mistake
from hostler.gateway.importing.litellm_addresses import address_of, certificate_settings, text_value
from hostler.gateway.importing.litellm_model_info import ModelInfo, model_info
from hostler.gateway.importing.litellm_providers import PROVIDERS, split_model
from hostler.gateway.importing.report import ImportReport, NoteKind, has_reference, reference
from hostler.gateway.importing.request_filters import as_rules
from hostler.gateway.importing.yaml_source import YamlSource, is_number

#: Parameters that become defaults of requests.
_SAMPLING: Final = frozenset(
    {
        *("temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "stop", "seed", "presence_penalty"),
        *("frequency_penalty", "n", "logit_bias", "user", "response_format", "tools", "tool_choice", "logprobs"),
        *(
            "reasoning_effort",
            "thinking",
            "dimensions",
            "parallel_tool_calls",
            "repetition_penalty",
            "min_p",
            "metadata",
            "modalities",
            "audio",
            "voice",
            "service_tier",
            "store",
            "verbosity",
            "prediction",
            "web_search_options",
            "encoding_format",
            "input_type",
            "keep_alive",
            "num_ctx",
            "reasoning",
            "instructions",
            "raw_scores",
            "truncation",
            "top_logprobs",
            "chat_template_kwargs",
        ),
    }
)
_CONNECTION: Final = frozenset(
    {
        *(
            "model",
            "api_base",
            "base_url",
            "api_key",
            "organization",
            "extra_headers",
            "headers",
            "api_version",
            "user_agent",
        ),
        *("custom_llm_provider", "litellm_credential_name", "extra_body", "azure_ad_token"),
    }
)
#: Limits of a deployment that are those of its backend here.
_RATES: Final[Mapping[str, str]] = {"rpm": "requests_per_minute", "tpm": "tokens_per_minute"}
_TIMEOUTS: Final[Mapping[str, str]] = {"timeout": "first_byte_s", "stream_timeout": "between_bytes_s"}
#: What happens instead.
_CHANGED: Final[Mapping[str, str]] = {
    "max_retries": "the next backend of the chain is tried instead",
    "num_retries": "the next backend of the chain is tried instead",
    "weight": "backends are tried in the order of gateway.chain",
}
_ELSEWHERE: Final[Mapping[str, str]] = {
    "tags": "requests are not routed by tags: give models names of their own, and keys the models that they may use",
    "region_name": "requests are not routed by region: give models names of their own",
    "mock_response": "answers are not made up",
    "mock_timeout": "answers are not made up",
    "input_cost_per_second": "prices are for tokens",
    "output_cost_per_second": "prices are for tokens",
    **dict.fromkeys(
        ("roles", "initial_prompt_value", "final_prompt_value", "bos_token", "eos_token"),
        "prompts are put together by the server that runs the model",
    ),
    **dict.fromkeys(
        ("adaptive_router_config", "auto_router_config", "auto_router_default_model", "auto_router_embedding_model"),
        "models are not chosen by the contents of requests",
    ),
    **dict.fromkeys(
        ("client_id", "client_secret", "tenant_id", "azure_scope", "azure_username", "azure_password"),
        "Azure wants a sign-in of its own there; use an API key: api_key",
    ),
    "cache_control_injection_points": "requests are marked for caches by clients",
    "silent_model": "requests are answered by one backend, and not repeated at another one",
    "guardrails": "contents of requests and answers are not checked",
    "vector_store_ids": "there are no vector stores",
    "prompt_id": "prompts are those of clients; a profile adds a text with request.system",
    "allowed_openai_params": "parameters that a protocol lacks are left out",
    "use_chat_completions_api": "each API is translated where a server does not have it",
    "max_parallel_requests": "a server without a supervisor queues requests itself",
    "max_budget": "costs are limited for all backends and for keys, not for one backend",
    "budget_duration": "costs are limited for all backends and for keys, not for one backend",
}


#: Parameters of other providers, which this one does not read.
_FOREIGN: Final = re.compile(r"(aws|vertex|vertex_ai|watsonx|sagemaker)_\w+")


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """A model at a server. `index` is its place in the list; `backend` has the keys of the backend without its models.
    Of several for a name, those with the lowest `order` are tried first, and those without one last."""

    index: int
    name: str
    model: str
    provider: str
    backend: Mapping[str, Any]
    order: int | None = None
    price: Mapping[str, float] | None = None
    description: Mapping[str, Any] | None = None


class DeploymentReader:
    """Reads the deployments, and notes what becomes of each key."""

    def __init__(self, source: YamlSource, report: ImportReport) -> None:
        self._source = source
        self._report = report
        self._noted: set[tuple[int, str]] = set()

    def read_all(self) -> list[Deployment]:
        """The deployments that have a backend here, in order."""
        found: list[Deployment] = []
        for index in range(len(self._source.items("model_list"))):
            found += self._read(index)
        return found

    def _note(self, kind: NoteKind, index: int, key: str, text: str = "") -> None:
        path = key.split(".") if key else []
        where = f"model_list[{index}]" + (f".{key}" if key else "")
        self._noted.add((index, key))
        self._report.note(kind, self._source.line("model_list", index, *path), where, text)

    def _read(self, index: int) -> list[Deployment]:
        entry = self._source.mapping("model_list", index)
        given = self._with_credential(index, self._source.mapping("model_list", index, "litellm_params"))
        shared = self._source.mapping("router_settings", "default_litellm_params")
        given = {**shared, **{key: entry[key] for key in _RATES if key in entry}, **given}
        name, model = entry.get("model_name"), given.get("model")
        if not isinstance(name, str) or not isinstance(model, str) or not name or not model:
            self._note("missing", index, "", "needs a name, and a model in litellm_params; not taken over")
            return []
        if name.count("*") > 1 or model.count("*") > 1:
            self._note(
                "missing", index, "", f"{name}: only one * is allowed in a name; the deployment is not taken over"
            )
            return []
        provider, there = split_model(model, given.get("custom_llm_provider"))
        backend = self._backend(index, provider, given) if there else None
        if not there:
            self._note("missing", index, "", f"{model} names no model of {provider}; not taken over")
        if backend is None:
            return []
        self._note("taken", index, "model_name")
        self._note("taken", index, "litellm_params.model", f"{there} at {backend['url']}")
        facts = self._facts(index, given)
        order = self._order(index, given)
        self._parameters(index, given, backend)
        for key in entry.keys() - {"model_name", "litellm_params", "model_info", *_RATES}:
            self._note("missing", index, key, "Hostler has no such setting")
        deployment = Deployment(
            index=index,
            name=name,
            model=there,
            provider=provider,
            backend=backend,
            order=order,
            price=facts.price,
            description=facts.description,
        )
        return [msgspec.structs.replace(deployment, backend=each) for each in _by_organization(given, backend)]

    def _with_credential(self, index: int, given: dict[str, Any]) -> dict[str, Any]:
        wanted = given.get("litellm_credential_name")
        for position, each in enumerate(self._source.items("credential_list")):
            if wanted is not None and isinstance(each, dict) and each.get("credential_name") == wanted:
                values = self._source.mapping("credential_list", position, "credential_values")
                self._note("taken", index, "litellm_params.litellm_credential_name")
                return {**values, **given}
        if wanted is not None:
            self._note("missing", index, "litellm_params.litellm_credential_name", f"there is no credential {wanted}")
        return given

    def _backend(self, index: int, provider: str, given: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            address = address_of(provider, given)
        except ValueError as error:
            text = f"{error}; the deployment is not taken over, and LiteLLM can stay a backend for it"
            self._note("missing", index, "", text)
            return None
        backend: dict[str, Any] = {"kind": address.kind, "url": address.url}
        for kind, key, text in address.notes:
            self._note(kind, index, f"litellm_params.{key}", text)
        self._key(index, provider, given, PROVIDERS[provider].variable, backend)
        self._headers(index, given, backend)
        if "ssl_verify" in given:
            backend |= certificate_settings(given["ssl_verify"])
            self._note("taken", index, "litellm_params.ssl_verify")
        for section, keys in (("limits", _RATES), ("timeouts", _TIMEOUTS)):
            found = {keys[key]: given[key] for key in keys if is_number(given.get(key)) and given[key] > 0}
            if section == "limits":
                found = {key: max(1, int(value)) for key, value in found.items()}
            if found:
                backend[section] = found
        return backend

    def _facts(self, index: int, given: Mapping[str, Any]) -> ModelInfo:
        facts = model_info(given, self._source.mapping("model_list", index, "model_info"))
        for kind, key, text in facts.notes:
            self._note(kind, index, key, text)
        return facts

    def _order(self, index: int, given: Mapping[str, Any]) -> int | None:
        order = given.get("order")
        if not isinstance(order, int) or isinstance(order, bool) or order < 0:
            return None
        self._note("taken", index, "litellm_params.order", "the place in gateway.chain")
        return order

    def _key(self, index: int, provider: str, given: Mapping[str, Any], variable: str, backend: dict[str, Any]) -> None:
        name = "api_key" if given.get("api_key") else "azure_ad_token"
        key = text_value(given.get(name))
        if not key:
            if variable and "api_base" not in given:
                backend["api_key"] = reference(variable)
                self._note("changed", index, "litellm_params.model", f"the key is the variable {variable}")
        elif has_reference(key):
            backend["api_key"] = key
            self._note("taken", index, f"litellm_params.{name}", "as a reference to the variable")
        else:
            backend["api_key_file"] = self._report.secret_file(provider, key)
            self._note("changed", index, f"litellm_params.{name}", f"is in the file {backend['api_key_file']}")

    def _headers(self, index: int, given: Mapping[str, Any], backend: dict[str, Any]) -> None:
        headers: dict[str, str] = {}
        for key in ("extra_headers", "headers"):
            if not isinstance(values := given.get(key), dict):
                continue
            found = {re.sub(r"\s+", "-", str(name)): text_value(value) for name, value in values.items()}
            mistakes = {name: mistake for name, value in found.items() if (mistake := header_mistake(name, value))}
            for name, mistake in mistakes.items():
                self._note("missing", index, f"litellm_params.{key}", f"{name!r} {mistake}")
            if len(mistakes) < len(found) or not found:
                self._note("taken", index, f"litellm_params.{key}")
            headers |= {name: value for name, value in found.items() if name not in mistakes}
        if agent := text_value(given.get("user_agent")):
            if mistake := header_mistake("User-Agent", agent):
                self._note("missing", index, "litellm_params.user_agent", mistake)
            else:
                headers["User-Agent"] = agent
                self._note("taken", index, "litellm_params.user_agent", "the header User-Agent")
        organization = given.get("organization")
        if isinstance(organization, list):
            self._note("taken", index, "litellm_params.organization", "a backend for each, tried in order")
        elif organization:
            headers["OpenAI-Organization"] = text_value(organization)
            self._note("taken", index, "litellm_params.organization", "the header OpenAI-Organization")
        if headers:
            backend["headers"] = headers

    def _parameters(self, index: int, given: Mapping[str, Any], backend: dict[str, Any]) -> None:
        default = {key: value for key, value in given.items() if key in _SAMPLING}
        if isinstance(body := given.get("extra_body"), dict):
            default |= body
            self._note("taken", index, "litellm_params.extra_body", "request.default of the backend")
        dropped = given.get("additional_drop_params")
        drop = [str(each) for each in dropped] if isinstance(dropped, list) else []
        rules, refused = as_rules(default=default, drop=drop)
        for each in refused:
            self._note("missing", index, "litellm_params", f"{each} cannot be changed by a rule")
        if rules:
            backend["request"] = rules
        for key in given:
            where = f"litellm_params.{key}"
            if (index, where) in self._noted:
                continue
            if key in _SAMPLING:
                self._note("taken", index, where, "request.default of the backend")
            elif key == "additional_drop_params":
                self._note("taken", index, where, "request.drop of the backend")
            elif key == "drop_params":
                self._note("changed", index, where, "parameters that a protocol lacks are left out in any case")
            elif key in _RATES and is_number(given[key]):
                self._note("taken", index, where, f"limits.{_RATES[key]} of the backend")
            elif key in _TIMEOUTS and is_number(given[key]):
                self._note("changed", index, where, f"timeouts.{_TIMEOUTS[key]} of the backend")
            elif key in _CHANGED:
                self._note("changed", index, where, _CHANGED[key])
            elif _FOREIGN.fullmatch(key):
                self._note("meaningless", index, where, "is for another provider")
            elif key not in _CONNECTION:
                self._note("missing", index, where, _ELSEWHERE.get(key, "Hostler has no such setting"))


def _by_organization(given: Mapping[str, Any], backend: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The backend once for each organization, where there are several."""
    organizations = given.get("organization")
    if not isinstance(organizations, list) or not organizations:
        return [dict(backend)]
    headers = backend.get("headers", {})
    return [{**backend, "headers": {**headers, "OpenAI-Organization": text_value(each)}} for each in organizations]
