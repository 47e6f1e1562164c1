"""The providers of LiteLLM that speak a protocol of ours, with their usual addresses and variables for keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from hostler.gateway.importing.report import reference

ProviderKind = Literal["openai", "anthropic", "ollama", "lmstudio"]


class Provider(msgspec.Struct, frozen=True):
    """A provider: the kind of backend, its address, and the variable with its key (empty: none).

    The address is empty where it is always given; variables in it are written `{NAME}`.
    """

    kind: ProviderKind
    url: str = ""
    variable: str = ""

    @property
    def address(self) -> str:
        """The address, with variables as references to them."""
        return re.sub(r"\{(\w+)\}", lambda match: reference(match[1]), self.url)

    @property
    def address_variable(self) -> str:
        """The variable that the address is, or starts with; empty if there is none."""
        match = re.match(r"\{(\w+)\}", self.url)
        return match[1] if match else ""


def _openai(url: str = "", variable: str = "") -> Provider:
    return Provider("openai", url, variable)


PROVIDERS: Final[Mapping[str, Provider]] = {
    "openai": _openai("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "text-completion-openai": _openai("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "aiohttp_openai": _openai("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "custom_openai": _openai(),
    "openai_like": _openai(),
    "azure": _openai("{AZURE_API_BASE}", "AZURE_API_KEY"),
    "azure_text": _openai("{AZURE_API_BASE}", "AZURE_API_KEY"),
    "azure_ai": _openai("{AZURE_AI_API_BASE}", "AZURE_AI_API_KEY"),
    "anthropic": Provider("anthropic", "https://api.anthropic.com", "ANTHROPIC_API_KEY"),
    "ollama": Provider("ollama", "http://localhost:11434"),
    "ollama_chat": Provider("ollama", "http://localhost:11434"),
    "lm_studio": Provider("lmstudio", "http://localhost:1234"),
    "hosted_vllm": _openai("{HOSTED_VLLM_API_BASE}"),
    "vllm": _openai(),
    "llamafile": _openai("http://127.0.0.1:8080/v1"),
    "xinference": _openai("http://127.0.0.1:9997/v1"),
    "infinity": _openai(),
    "docker_model_runner": _openai("http://localhost:12434/engines/v1"),
    "lemonade": _openai("http://localhost:8000/api/v1"),
    "litellm_proxy": _openai("{LITELLM_PROXY_API_BASE}", "LITELLM_PROXY_API_KEY"),
    "huggingface": _openai("https://router.huggingface.co/v1", "HF_TOKEN"),
    "openrouter": _openai("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "groq": _openai("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "mistral": _openai("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "codestral": _openai("https://codestral.mistral.ai/v1", "CODESTRAL_API_KEY"),
    "text-completion-codestral": _openai("https://codestral.mistral.ai/v1", "CODESTRAL_API_KEY"),
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
    "ai21": _openai("https://api.ai21.com/studio/v1", "AI21_API_KEY"),
    "ai21_chat": _openai("https://api.ai21.com/studio/v1", "AI21_API_KEY"),
    "aihubmix": _openai("https://aihubmix.com/v1", "AIHUBMIX_API_KEY"),
    "aiml": _openai("https://api.aimlapi.com/v1", "AIML_API_KEY"),
    "amazon_nova": _openai("https://api.nova.amazon.com/v1", "AMAZON_NOVA_API_KEY"),
    "apertis": _openai("https://api.stima.tech/v1", "STIMA_API_KEY"),
    "baseten": _openai("https://inference.baseten.co/v1", "BASETEN_API_KEY"),
    "bedrock_mantle": _openai("https://bedrock-mantle.{AWS_REGION}.api.aws/v1", "AWS_BEARER_TOKEN_BEDROCK"),
    "bytez": _openai("https://api.bytez.com/models/v2/openai/v1", "BYTEZ_API_KEY"),
    "chutes": _openai("https://llm.chutes.ai/v1", "CHUTES_API_KEY"),
    "clarifai": _openai("https://api.clarifai.com/v2/ext/openai/v1", "CLARIFAI_API_KEY"),
    "cloudflare": _openai(
        "https://api.cloudflare.com/client/v4/accounts/{CLOUDFLARE_ACCOUNT_ID}/ai/v1", "CLOUDFLARE_API_KEY"
    ),
    "cohere": _openai("https://api.cohere.ai/compatibility/v1", "COHERE_API_KEY"),
    "cohere_chat": _openai("https://api.cohere.ai/compatibility/v1", "COHERE_API_KEY"),
    "cometapi": _openai("https://api.cometapi.com/v1", "COMETAPI_API_KEY"),
    "compactifai": _openai("https://api.compactif.ai/v1", "COMPACTIFAI_API_KEY"),
    "crusoe": _openai("https://api.inference.crusoecloud.com/v1", "CRUSOE_API_KEY"),
    "dashscope": _openai("https://dashscope-intl.aliyuncs.com/compatible-mode/v1", "DASHSCOPE_API_KEY"),
    "databricks": _openai("{DATABRICKS_API_BASE}", "DATABRICKS_API_KEY"),
    "edenai": _openai("https://api.edenai.run/v3", "EDENAI_API_KEY"),
    "featherless_ai": _openai("https://api.featherless.ai/v1", "FEATHERLESS_AI_API_KEY"),
    "friendliai": _openai("https://api.friendli.ai/serverless/v1", "FRIENDLI_TOKEN"),
    "galadriel": _openai("https://api.galadriel.com/v1", "GALADRIEL_API_KEY"),
    "github": _openai("https://models.inference.ai.azure.com", "GITHUB_API_KEY"),
    "gmi": _openai("https://api.gmi-serving.com/v1", "GMI_API_KEY"),
    "gradient_ai": _openai("https://inference.do-ai.run/v1", "GRADIENT_AI_API_KEY"),
    "helicone": _openai("https://ai-gateway.helicone.ai", "HELICONE_API_KEY"),
    "heroku": _openai("{HEROKU_API_BASE}/v1", "HEROKU_API_KEY"),
    "hyperbolic": _openai("https://api.hyperbolic.xyz/v1", "HYPERBOLIC_API_KEY"),
    "inception": _openai("https://api.inceptionlabs.ai/v1", "INCEPTION_API_KEY"),
    "jina_ai": _openai("https://api.jina.ai/v1", "JINA_AI_API_KEY"),
    "lambda_ai": _openai("https://api.lambda.ai/v1", "LAMBDA_API_KEY"),
    "llamagate": _openai("https://api.llamagate.dev/v1", "LLAMAGATE_API_KEY"),
    "meta_llama": _openai("https://api.llama.com/compat/v1", "LLAMA_API_KEY"),
    "minimax": _openai("https://api.minimax.io/v1", "MINIMAX_API_KEY"),
    "modelscope": _openai("https://api-inference.modelscope.cn/v1", "MODELSCOPE_API_KEY"),
    "morph": _openai("https://api.morphllm.com/v1", "MORPH_API_KEY"),
    "nano-gpt": _openai("https://nano-gpt.com/api/v1", "NANOGPT_API_KEY"),
    "nebius": _openai("https://api.studio.nebius.ai/v1", "NEBIUS_API_KEY"),
    "novita": _openai("https://api.novita.ai/v3/openai", "NOVITA_API_KEY"),
    "nscale": _openai("https://inference.api.nscale.com/v1", "NSCALE_API_KEY"),
    "ovhcloud": _openai("https://oai.endpoints.kepler.ai.cloud.ovh.net/v1", "OVHCLOUD_API_KEY"),
    "poe": _openai("https://api.poe.com/v1", "POE_API_KEY"),
    "publicai": _openai("https://api.publicai.co/v1", "PUBLICAI_API_KEY"),
    "sarvam": _openai("https://api.sarvam.ai/v1", "SARVAM_API_KEY"),
    "scaleway": _openai("https://api.scaleway.ai/v1", "SCW_SECRET_KEY"),
    "synthetic": _openai("https://api.synthetic.new/openai/v1", "SYNTHETIC_API_KEY"),
    "v0": _openai("https://api.v0.dev/v1", "V0_API_KEY"),
    "veniceai": _openai("https://api.venice.ai/api/v1", "VENICE_AI_API_KEY"),
    "vercel_ai_gateway": _openai("https://ai-gateway.vercel.sh/v1", "VERCEL_AI_GATEWAY_API_KEY"),
    "volcengine": _openai("https://ark.cn-beijing.volces.com/api/v3", "VOLCENGINE_API_KEY"),
    "voyage": _openai("https://api.voyageai.com/v1", "VOYAGE_API_KEY"),
    "wandb": _openai("https://api.inference.wandb.ai/v1", "WANDB_API_KEY"),
    "xiaomi_mimo": _openai("https://api.xiaomimimo.com/v1", "XIAOMI_MIMO_API_KEY"),
    "zai": _openai("https://api.z.ai/api/paas/v4", "ZAI_API_KEY"),
}

#: What providers lack that have no backend here.
_PROTOCOL: Final = "speaks a protocol of its own"
_SIGN_IN: Final = "wants a sign-in of its own instead of an API key"
_PROMPTS: Final = "puts prompts together, which clients do themselves here"
#: Providers without a backend here, and why.
OTHERS: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            *("bedrock", "bedrock_converse", "sagemaker", "sagemaker_chat", "sagemaker_nova", "vertex_ai_beta"),
            *("vertex_ai", "replicate", "palm", "nlp_cloud", "aleph_alpha", "predibase", "triton", "petals"),
            *("oobabooga", "assemblyai", "deepgram", "elevenlabs", "langgraph", "recraft", "runwayml", "topaz"),
            *("fal_ai", "stability", "black_forest_labs", "aws_polly", "aws_textract", "transcribe", "azure_speech"),
            *("manus", "soniox", "nvidia_riva", "reducto", "ragflow", "a2a", "datarobot", "maritalk"),
        ),
        _PROTOCOL,
    ),
    **dict.fromkeys(
        ("chatgpt", "github_copilot", "gigachat", "oci", "sap", "snowflake", "watsonx", "watsonx_text"), _SIGN_IN
    ),
    **dict.fromkeys(("langfuse", "humanloop", "dotprompt", "bitbucket", "gitlab", "prompt_layer"), _PROMPTS),
    "auto_router": "chooses models by the contents of requests, which is not done here",
}


def split_model(model: str, given: str | None = None) -> tuple[str, str]:
    """The provider and the model's name there. Names without one are of OpenAI, or of Anthropic for its models."""
    if given:
        return given, model.removeprefix(f"{given}/")
    head, slash, rest = model.partition("/")
    if slash and (head in PROVIDERS or head in OTHERS):
        return head, rest
    return ("anthropic" if model.startswith("claude") else "openai"), model
