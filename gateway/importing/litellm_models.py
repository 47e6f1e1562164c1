"""The deployments of LiteLLM's `model_list` as backends: one for each server, key and set of parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from hostler.gateway.importing.litellm_providers import PROVIDERS, split_model
from hostler.gateway.importing.report import ImportReport, has_reference, reference
from hostler.gateway.importing.request_filters import as_rules
from hostler.gateway.importing.yaml_source import YamlSource, is_number

_ENV: Final = re.compile(r"os\.environ/([A-Za-z_][A-Za-z0-9_]*)")
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
        ),
    }
)
_CONNECTION: Final = frozenset(
    {
        *("model", "api_base", "base_url", "api_key", "organization", "extra_headers", "headers", "api_version"),
        *("custom_llm_provider", "litellm_credential_name", "ssl_verify", "extra_body"),
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
    "max_parallel_requests": "a server without a supervisor queues requests itself",
    "max_budget": "costs are limited for all backends and for keys, not for one backend",
    "budget_duration": "costs are limited for all backends and for keys, not for one backend",
}


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """A model at a server. `backend` has the keys of the backend without its models."""

    name: str
    model: str
    provider: str
    backend: Mapping[str, Any]
    price: Mapping[str, float] | None = None
    description: Mapping[str, Any] | None = None


class DeploymentReader:
    """Reads the deployments, and notes what becomes of each key."""

    def __init__(self, source: YamlSource, report: ImportReport) -> None:
        self._source = source
        self._report = report
        self._drops_parameters = False

    def read_all(self) -> list[Deployment]:
        """The deployments that have a backend here, in order."""
        found = []
        for index in range(len(self._source.items("model_list"))):
            deployment = self._read(index)
            if deployment is not None:
                found.append(deployment)
        return found

    def _note(self, kind: str, index: int, key: str, text: str = "") -> None:
        add = {"taken": self._report.taken, "changed": self._report.changed, "missing": self._report.missing}[kind]
        add(self._source.line("model_list", index, *key.split(".")), f"model_list[{index}].{key}", text)

    def _read(self, index: int) -> Deployment | None:
        entry = self._source.mapping("model_list", index)
        given = self._with_credential(index, self._source.mapping("model_list", index, "litellm_params"))
        name, model = entry.get("model_name"), given.get("model")
        if not isinstance(name, str) or not isinstance(model, str) or not name or not model:
            self._note("missing", index, "model_name", "needs a name, and a model in litellm_params; not taken over")
            return None
        provider, there = split_model(model, given.get("custom_llm_provider"))
        backend = self._backend(index, provider, given)
        if backend is None:
            return None
        self._note("taken", index, "model_name")
        self._note("taken", index, "litellm_params.model", f"{there} at {backend['url']}")
        self._parameters(index, given, backend)
        price, description = self._model_info(
            index, {**given, **self._source.mapping("model_list", index, "model_info")}
        )
        for key in entry.keys() - {"model_name", "litellm_params", "model_info"}:
            self._note("missing", index, key, "has no counterpart")
        return Deployment(
            name=name, model=there, provider=provider, backend=backend, price=price, description=description
        )

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
        known = PROVIDERS.get(provider)
        if known is None:
            text = f"{provider} speaks a protocol of its own; the deployment is not taken over"
            self._note("missing", index, "litellm_params.model", text)
            return None
        url = text_value(given.get("api_base") or given.get("base_url")) or known.url
        if not has_reference(url) and not url.startswith(("http://", "https://")):
            text = f"{provider} needs an address that starts with http:// or https://; the deployment is not taken over"
            self._note("missing", index, "litellm_params.api_base", text)
            return None
        backend: dict[str, Any] = {"kind": known.kind, "url": _address(url, provider)}
        for key in ("api_base", "base_url"):
            if key in given:
                self._note("taken", index, f"litellm_params.{key}")
        self._key(index, provider, given, known.variable, backend)
        self._headers(index, given, backend)
        if "api_version" in given:
            self._note("changed", index, "litellm_params.api_version", "requests go to Azure's /openai/v1, without one")
        if given.get("ssl_verify") is False:
            backend["insecure"] = True
        for section, keys in (("limits", _RATES), ("timeouts", _TIMEOUTS)):
            found = {keys[key]: given[key] for key in keys if is_number(given.get(key)) and given[key] > 0}
            if section == "limits":
                found = {key: max(1, int(value)) for key, value in found.items()}
            if found:
                backend[section] = found
        return backend

    def _key(self, index: int, provider: str, given: Mapping[str, Any], variable: str, backend: dict[str, Any]) -> None:
        key = text_value(given.get("api_key"))
        if not key:
            if variable and "api_base" not in given:
                backend["api_key"] = reference(variable)
                self._note("changed", index, "litellm_params.model", f"the key is the variable {variable}")
        elif has_reference(key):
            backend["api_key"] = key
            self._note("taken", index, "litellm_params.api_key", "as a reference to the variable")
        else:
            backend["api_key_file"] = self._report.secret_file(provider, key)
            self._note("changed", index, "litellm_params.api_key", f"is in the file {backend['api_key_file']}")

    def _headers(self, index: int, given: Mapping[str, Any], backend: dict[str, Any]) -> None:
        headers: dict[str, str] = {}
        for key in ("extra_headers", "headers"):
            if isinstance(values := given.get(key), dict):
                headers |= {re.sub(r"\s+", "-", name): text_value(value) for name, value in values.items()}
                self._note("taken", index, f"litellm_params.{key}")
        organization = given.get("organization")
        if isinstance(organization, list):
            self._note("missing", index, "litellm_params.organization", "one backend has one organization")
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
            if key in _SAMPLING:
                self._note("taken", index, where, "request.default of the backend")
            elif key == "additional_drop_params":
                self._note("taken", index, where, "request.drop of the backend")
            elif key == "drop_params":
                self._note("changed", index, where, "parameters that a protocol lacks are left out in any case")
            elif key in ("input_cost_per_token", "output_cost_per_token"):
                continue  # noted with the model's facts
            elif key in _RATES and is_number(given[key]):
                self._note("taken", index, where, f"limits.{_RATES[key]} of the backend")
            elif key in _TIMEOUTS and is_number(given[key]):
                self._note("changed", index, where, f"timeouts.{_TIMEOUTS[key]} of the backend")
            elif key in _CHANGED:
                self._note("changed", index, where, _CHANGED[key])
            elif key not in _CONNECTION:
                self._note("missing", index, where, _ELSEWHERE.get(key, "has no counterpart"))

    def _model_info(
        self, index: int, info: Mapping[str, Any]
    ) -> tuple[Mapping[str, float] | None, Mapping[str, Any] | None]:
        place = dict.fromkeys(self._source.mapping("model_list", index, "model_info"), "model_info")
        price: dict[str, float] = {}
        description: dict[str, Any] = {}
        for key, value in info.items():
            where = f"{place.get(key, 'litellm_params')}.{key}"
            if key in _COSTS and is_number(value):
                price[_COSTS[key]] = round(value * 1_000_000, 6)
                self._note("taken", index, where, "prices, for a million tokens")
            elif key not in place:
                continue
            elif key == "max_input_tokens" and isinstance(value, int) and is_number(value, 1):
                description["context"] = value
                self._note("taken", index, where, "the context in describe")
            elif key == "mode":
                capability = {"embedding": "embedding", "rerank": "rerank", "chat": "completion"}.get(str(value))
                if capability is not None:
                    description.setdefault("capabilities", []).append(capability)
                self._note("taken" if capability else "missing", index, where, "the capabilities in describe")
            elif key in _CAPABILITIES and isinstance(value, bool):
                capabilities = description.setdefault("capabilities", ["completion"])
                if value:
                    capabilities.append(_CAPABILITIES[key])
                self._note("taken", index, where, "the capabilities in describe")
            else:
                description.setdefault("metadata", {})[key] = value
                self._note("taken", index, where, "the metadata in describe")
        return price or None, description or None


_COSTS: Final[Mapping[str, str]] = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cached",
}
_CAPABILITIES: Final[Mapping[str, str]] = {
    "supports_vision": "vision",
    "supports_function_calling": "tools",
    "supports_reasoning": "thinking",
    "supports_audio_input": "audio",
}


def text_value(given: Any) -> str:
    """A text, with `os.environ/NAME` as a reference to the variable."""
    if given is None:
        return ""
    match = _ENV.fullmatch(str(given).strip())
    return reference(match[1]) if match else str(given).strip()


def _address(url: str, provider: str) -> str:
    """The address as backends have it: Azure's models are below `/openai/v1`."""
    url = url.rstrip("/")
    if provider == "azure":
        return url if url.endswith("/openai/v1") else re.sub(r"/openai(/.*)?$", "", url) + "/openai/v1"
    return url
