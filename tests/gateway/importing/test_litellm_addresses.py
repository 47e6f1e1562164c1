"""Where LiteLLM's deployments are: addresses of providers, of Azure, and those that a variable has."""

from __future__ import annotations

from typing import Any

import pytest

from hostler.gateway.importing.litellm import import_litellm
from hostler.gateway.importing.litellm_addresses import certificate_settings
from hostler.gateway.importing.report import Imported


def translate(parameters: str, more: str = "") -> Imported:
    text = f"model_list: [{{model_name: m, litellm_params: {{{parameters}}}}}]\n{more}"
    return import_litellm(text, "config.yaml", prefix="hostler")


def backend(parameters: str, more: str = "") -> dict[str, Any]:
    (found,) = translate(parameters, more).sections["backends"].values()
    return dict(found)


AZURE = "https://x.services.ai.azure.com"


@pytest.mark.parametrize(
    ("parameters", "kind", "url"),
    [
        ("model: azure/x", "openai", "${env:AZURE_API_BASE}/openai/v1"),
        ("model: azure/x, api_base: <your-endpoint>", "openai", "${env:AZURE_API_BASE}/openai/v1"),
        ("model: azure/x, api_base: one.openai.azure.com/", "openai", "https://one.openai.azure.com/openai/v1"),
        (f"model: azure_ai/grok, api_base: {AZURE}/models", "openai", f"{AZURE}/openai/v1"),
        (f"model: azure_ai/grok, api_base: {AZURE}/openai/v1/", "openai", f"{AZURE}/openai/v1"),
        (f"model: azure_ai/claude-x, api_base: {AZURE}", "anthropic", f"{AZURE}/anthropic"),
        (f"model: azure_ai/claude-x, api_base: {AZURE}/anthropic/v1/messages", "anthropic", f"{AZURE}/anthropic"),
        ("model: azure_ai/x, api_base: 'https://n.eu.inference.ai.azure.com'", "openai", "https://n.eu.inference.ai.azure.com"),
        ("model: hosted_vllm/x", "openai", "${env:HOSTED_VLLM_API_BASE}"),
        ("model: bedrock_mantle/x", "openai", "https://bedrock-mantle.${env:AWS_REGION}.api.aws/v1"),
        ("model: bedrock_mantle/x, aws_region_name: eu-west-1", "openai", "https://bedrock-mantle.eu-west-1.api.aws/v1"),
    ],
)  # fmt: skip
def test_an_address_is_as_the_provider_has_it(parameters: str, kind: str, url: str) -> None:
    found = backend(parameters)
    assert (found["kind"], found["url"]) == (kind, url)


@pytest.mark.parametrize(
    ("parameters", "key", "kind", "why"),
    [
        ("model: azure/x", "model", "changed", "the address is the variable AZURE_API_BASE"),
        ("model: azure/x, api_base: <here>", "api_base", "changed", "'<here>' is no address; it is the variable"),
        ("model: openai/x, base_url: one.example", "base_url", "changed", "https://one.example"),
        ("model: bedrock_mantle/x, aws_region_name: eu", "aws_region_name", "taken", "part of the address"),
        ("model: openai/x, aws_region_name: eu", "aws_region_name", "meaningless", "for another provider"),
        ("model: openai/x, tenant_id: t", "tenant_id", "missing", "use an API key"),
        ("model: openai/x, order: 2", "order", "taken", "gateway.chain"),
        ("model: openai/x, order: -1", "order", "missing", "Hostler has no such setting"),
    ],
)
def test_what_is_different_about_an_address_is_said(parameters: str, key: str, kind: str, why: str) -> None:
    notes = [each for each in translate(parameters).notes if each.key == f"model_list[0].litellm_params.{key}"]
    assert any(each.kind == kind and why in each.text for each in notes), notes


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("sagemaker/x", "sagemaker speaks a protocol of its own"),
        ("github_copilot/x", "wants a sign-in of its own"),
        ("auto_router/x", "chooses models by the contents of requests"),
        ("openai/x, api_base: <here>", "openai needs an address that starts with http"),
    ],
)
def test_a_deployment_without_a_backend_here_says_why(model: str, why: str) -> None:
    imported = translate(f"model: {model}")
    (note,) = [each for each in imported.notes if each.kind == "missing"]
    assert why in note.text and note.text.endswith("LiteLLM can stay a backend for it")


@pytest.mark.parametrize(
    ("given", "settings"),
    [(False, {"insecure": True}), ("False", {"insecure": True}), (True, {}), ("/ca.pem", {"ca_file": "/ca.pem"})],
)
def test_certificates_are_verified_as_the_file_says(given: Any, settings: dict[str, Any]) -> None:
    assert certificate_settings(given) == settings


def test_settings_of_tls_are_those_of_backends_without_any_of_their_own() -> None:
    more = "litellm_settings: {ssl_verify: /ca.pem, ssl_certificate: /me.pem}\n"
    assert backend("model: openai/x", more).items() >= {"ca_file": "/ca.pem", "client_cert_file": "/me.pem"}.items()
    own = backend("model: openai/x, ssl_verify: false", more)
    assert (own["insecure"], own["client_cert_file"], "ca_file" in own) == (True, "/me.pem", False)


def test_headers_of_clients_go_on_where_the_file_says() -> None:
    both = "general_settings: {forward_client_headers_to_llm_api: true, forward_openai_org_id: true}\n"
    assert backend("model: openai/x", both)["forward_headers"] == ["openai-organization", "x-*"]
    one = "litellm_settings: {model_group_settings: {forward_client_headers_to_llm_api: [NAME], other: 1}}\n"
    assert backend("model: openai/x", one.replace("NAME", "m"))["forward_headers"] == ["x-*"]
    assert "forward_headers" not in backend("model: openai/x", one.replace("NAME", "elsewhere"))
    imported = translate("model: openai/x", one)
    kinds = {each.key: each.kind for each in imported.notes if "group" in each.key}
    assert list(kinds.values()) == ["taken", "missing"]
    off = "general_settings: {forward_client_headers_to_llm_api: false}\n"
    assert "forward_headers" not in backend("model: openai/x", off)


def test_the_order_of_deployments_is_that_of_the_chain() -> None:
    text = """\
model_list:
  - {model_name: m, litellm_params: {model: groq/x}}
  - {model_name: m, litellm_params: {model: openai/x, order: 2}}
  - {model_name: m, litellm_params: {model: mistral/x, order: 1}}
"""
    imported = import_litellm(text, "config.yaml", prefix="hostler")
    assert imported.sections["gateway"]["chain"] == ["mistral", "openai", "groq"]


def test_parameters_for_all_deployments_are_those_of_each_that_has_no_others() -> None:
    more = "router_settings: {default_litellm_params: {temperature: 0.1, seed: 7}}\n"
    assert backend("model: openai/x, seed: 1", more)["request"]["default"] == {"temperature": 0.1, "seed": 1}
