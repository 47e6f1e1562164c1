"""The providers of LiteLLM that speak a protocol of ours, with their usual addresses and variables for keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

ProviderKind = Literal["openai", "anthropic", "ollama", "lmstudio"]


class Provider(msgspec.Struct, frozen=True):
    """A provider: the kind of backend, its address (empty: always given), and the variable with its key (empty: none)."""

    kind: ProviderKind
    url: str = ""
    variable: str = ""


def _openai(url: str = "", variable: str = "") -> Provider:
    return Provider("openai", url, variable)


PROVIDERS: Final[Mapping[str, Provider]] = {
    "openai": _openai("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "text-completion-openai": _openai("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "custom_openai": _openai(),
    "openai_like": _openai(),
    "azure": _openai("", "AZURE_API_KEY"),
    "anthropic": Provider("anthropic", "https://api.anthropic.com", "ANTHROPIC_API_KEY"),
    "ollama": Provider("ollama", "http://localhost:11434"),
    "ollama_chat": Provider("ollama", "http://localhost:11434"),
    "lm_studio": Provider("lmstudio", "http://localhost:1234"),
    "hosted_vllm": _openai(),
    "vllm": _openai(),
    "llamafile": _openai("http://127.0.0.1:8080/v1"),
    "xinference": _openai("http://127.0.0.1:9997/v1"),
    "infinity": _openai(),
    "litellm_proxy": _openai("", "LITELLM_PROXY_API_KEY"),
    "huggingface": _openai("https://router.huggingface.co/v1", "HF_TOKEN"),
    "openrouter": _openai("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "groq": _openai("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "mistral": _openai("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "codestral": _openai("https://codestral.mistral.ai/v1", "CODESTRAL_API_KEY"),
    "deepseek": _openai("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "together_ai": _openai("https://api.together.xyz/v1", "TOGETHERAI_API_KEY"),
    "fireworks_ai": _openai("https://api.fireworks.ai/inference/v1", "FIREWORKS_AI_API_KEY"),
    "perplexity": _openai("https://api.perplexity.ai", "PERPLEXITYAI_API_KEY"),
    "xai": _openai("https://api.x.ai/v1", "XAI_API_KEY"),
    "gemini": _openai("https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
    "cerebras": _openai("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    "nvidia_nim": _openai("https://integrate.api.nvidia.com/v1", "NVIDIA_NIM_API_KEY"),
    "deepinfra": _openai("https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY"),
    "sambanova": _openai("https://api.sambanova.ai/v1", "SAMBANOVA_API_KEY"),
    "moonshot": _openai("https://api.moonshot.ai/v1", "MOONSHOT_API_KEY"),
}

#: Providers with protocols of their own.
OTHERS: Final = frozenset(
    {
        *("bedrock", "vertex_ai", "sagemaker", "cohere", "cohere_chat", "replicate", "palm", "watsonx", "databricks"),
        *("azure_ai", "ai21", "nlp_cloud", "aleph_alpha", "voyage", "predibase", "triton", "petals", "cloudflare"),
        *("oobabooga", "baseten", "snowflake", "github_copilot", "jina_ai", "assemblyai", "deepgram", "gigachat"),
    }
)


def split_model(model: str, given: str | None = None) -> tuple[str, str]:
    """The provider and the model's name there. Names without one are of OpenAI, or of Anthropic for its models."""
    if given:
        return given, model.removeprefix(f"{given}/")
    head, slash, rest = model.partition("/")
    if slash and (head in PROVIDERS or head in OTHERS):
        return head, rest
    return ("anthropic" if model.startswith("claude") else "openai"), model
