"""Where LiteLLM's deployments are: the kind of backend, its address, and what is different about it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from hostler.gateway.importing.litellm_providers import OTHERS, PROVIDERS, Provider
from hostler.gateway.importing.report import NoteKind, has_reference, reference

_ENV: Final = re.compile(r"os\.environ/([A-Za-z_][A-Za-z0-9_]*)")
_HOST: Final = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(:\d+)?(/[!-~]*)?")
#: The variable of Amazon's region in addresses.
_REGION: Final = "AWS_REGION"


class DeploymentAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a deployment is. `notes` have the parameters that it is made of."""

    kind: str
    url: str
    notes: tuple[tuple[NoteKind, str, str], ...] = ()


def address_of(provider: str, given: Mapping[str, Any]) -> DeploymentAddress:
    """The address of a deployment with these parameters. Raises `ValueError` with the reason why it has none here."""
    known = PROVIDERS.get(provider)
    if known is None:
        why = OTHERS.get(provider, "is no known provider")
        raise ValueError(f"{provider} {why}")
    notes = list(_notes(known, given))
    key = next((key for key in ("api_base", "base_url") if given.get(key)), None)
    url = _written_address(known, text_value(given[key])) if key is not None else ""
    model = str(given["model"])
    head, slash, _ = model.partition("/")
    if slash and not url and head != provider and not given.get("custom_llm_provider"):
        raise ValueError(f"{head} is no known provider, and there is no api_base")
    url = url or known.address
    if (region := given.get("aws_region_name")) and reference(_REGION) in url:
        url = url.replace(reference(_REGION), text_value(region))
        notes.append(("taken", "aws_region_name", "part of the address"))
    if provider == "huggingface" and key is not None and not url.rstrip("/").endswith("/v1"):
        url = f"{url.rstrip('/')}/v1"
    if not has_reference(url) and not url.startswith(("http://", "https://")):
        raise ValueError(f"{provider} needs an address that starts with http:// or https://")
    kind, url = _spoken_there(known.kind, provider, model, url.rstrip("/"))
    return DeploymentAddress(kind=kind, url=url, notes=tuple(notes))


def certificate_settings(given: Any) -> dict[str, Any]:
    """The keys of a backend for LiteLLM's `ssl_verify`: `false`, or a file with the certificates to trust."""
    if given is False or str(given).lower() == "false":
        return {"insecure": True}
    return {"ca_file": text_value(given)} if isinstance(given, str) and given.lower() != "true" else {}


def text_value(given: Any) -> str:
    """A text, with `os.environ/NAME` as a reference to the variable."""
    if given is None:
        return ""
    match = _ENV.fullmatch(str(given).strip())
    return reference(match[1]) if match else str(given).strip()


def _written_address(known: Provider, text: str) -> str:
    """The address that the file has; empty where it has none but a variable of the provider can."""
    if has_reference(text) or text.startswith(("http://", "https://")):
        return text
    if _HOST.fullmatch(text):
        return f"https://{text}"
    return "" if known.address_variable else text


def _notes(known: Provider, given: Mapping[str, Any]) -> Iterator[tuple[NoteKind, str, str]]:
    present = [key for key in ("api_base", "base_url") if key in given]
    for key in present:
        text = text_value(given[key])
        found = _written_address(known, text)
        if found == text:
            yield "taken", key, ""
        else:
            yield "changed", key, found or f"{text!r} is no address; it is the variable {known.address_variable}"
    if not present and known.address_variable:
        yield "changed", "model", f"the address is the variable {known.address_variable}"
    if "api_version" in given:
        yield "changed", "api_version", "requests go to Azure's /openai/v1, without one"


def _spoken_there(kind: str, provider: str, model: str, url: str) -> tuple[str, str]:
    """The kind of backend and its address: Azure serves OpenAI's protocol below `/openai/v1`, and Anthropic's for
    Anthropic's models."""
    if provider == "azure_ai" and ("claude" in model or url.endswith("/anthropic")):
        return "anthropic", re.sub(r"(/anthropic(/.*)?|/api/projects/.*)$", "", url) + "/anthropic"
    on_azure = provider in ("azure", "azure_text") or (
        provider == "azure_ai" and re.search(r"\.(services\.ai|cognitiveservices|openai)\.azure\.com|^\0", url)
    )
    if on_azure and not url.endswith("/openai/v1"):
        return kind, re.sub(r"/(openai|models|api/projects)(/.*)?$", "", url) + "/openai/v1"
    return kind, url
