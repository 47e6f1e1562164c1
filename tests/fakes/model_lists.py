"""What servers answer when they are asked for their models, by path: the shapes of today's versions, shortened."""

from __future__ import annotations

from typing import Any

_DIGEST = "a" * 64

OLLAMA: dict[str, Any] = {
    "/api/tags": {
        "models": [
            {
                "name": "qwen3:8b",
                "model": "qwen3:8b",
                "modified_at": "2026-11-22T23:35:11.039868407Z",
                "size": 5_200_000_000,
                "digest": _DIGEST,
                "runner": "llamacpp",
                "details": {
                    "parent_model": "",
                    "format": "gguf",
                    "family": "qwen3",
                    "families": ["qwen3"],
                    "parameter_size": "8.2B",
                    "quantization_level": "Q4_K_M",
                },
            },
            {
                "name": "nomic-embed-text:latest",
                "size": 274_000_000,
                "digest": "b" * 64,
                "modified_at": "",
                "details": {},
            },
        ]
    },
    "/api/ps": {"models": [{"name": "qwen3:8b", "context_length": 8192, "size_vram": 1}]},
    "/api/show": {
        "qwen3:8b": {
            "parameters": 'stop                           "<|im_end|>"\ntop_k                          20',
            "details": {"family": "qwen3", "quantization_level": "Q4_K_M"},
            "model_info": {
                "general.architecture": "qwen3",
                "general.parameter_count": 8_190_735_360,
                "qwen3.context_length": 40960,
                "qwen3.embedding_length": 4096,
                "tokenizer.ggml.tokens": None,
            },
            "capabilities": ["completion", "tools", "vision", "thinking"],
            "thinking": {"values": [True, False], "default": True},
        },
        "nomic-embed-text:latest": {
            "details": {"family": "nomic-bert", "quantization_level": "F16"},
            "model_info": {"general.architecture": "nomic-bert", "nomic-bert.context_length": 2048},
            "capabilities": ["embedding"],
        },
    },
}

LM_STUDIO: dict[str, Any] = {
    "/api/v1/models": {
        "models": [
            {
                "type": "llm",
                "publisher": "lmstudio-community",
                "key": "gemma-3-270m-it-qat",
                "display_name": "Gemma 3 270m Instruct Qat",
                "architecture": "gemma3",
                "quantization": {"name": "Q4_0", "bits_per_weight": 4},
                "size_bytes": 241_410_208,
                "params_string": "270M",
                "loaded_instances": [{"id": "gemma-3-270m-it-qat", "config": {"context_length": 4096}}],
                "max_context_length": 32768,
                "format": "gguf",
                "capabilities": {"vision": True, "trained_for_tool_use": True},
                "description": None,
            },
            {
                "type": "embedding",
                "publisher": "gaianet",
                "key": "text-embedding-nomic",
                "quantization": {"name": "F16", "bits_per_weight": 16},
                "size_bytes": 274_290_560,
                "params_string": None,
                "loaded_instances": [],
                "max_context_length": 2048,
                "format": "gguf",
            },
        ]
    }
}

OLD_LM_STUDIO: dict[str, Any] = {
    "/api/v0/models": {
        "object": "list",
        "data": [
            {
                "id": "qwen2-vl-7b-instruct",
                "type": "vlm",
                "arch": "qwen2_vl",
                "quantization": "4bit",
                "state": "loaded",
                "max_context_length": 32768,
                "loaded_context_length": 4096,
                "capabilities": ["tool_use"],
            }
        ],
    }
}

LLAMA_SERVER: dict[str, Any] = {
    "/v1/models": {
        "object": "list",
        "models": [{"name": "/models/Llama-3.1-8B-Q4_K_M.gguf", "capabilities": ["completion", "multimodal"]}],
        "data": [
            {
                "id": "/models/Llama-3.1-8B-Q4_K_M.gguf",
                "object": "model",
                "created": 1_700_000_000,
                "owned_by": "llamacpp",
                "architecture": {"input_modalities": ["text", "image"], "output_modalities": ["text"]},
                "meta": {
                    "n_ctx": 16384,
                    "n_ctx_train": 131072,
                    "n_embd": 4096,
                    "n_params": 8_030_261_312,
                    "size": 4_920_000_000,
                },
            }
        ],
    },
    "/props": {
        "default_generation_settings": {"n_ctx": 16384, "params": {}},
        "total_slots": 1,
        "model_path": "/models/Llama-3.1-8B-Q4_K_M.gguf",
        "chat_template": "{% if tools %}...{% endif %}",
        "chat_template_caps": {"supports_tools": True},
        "modalities": {"vision": True, "audio": False},
    },
}

VLLM: dict[str, Any] = {
    "/v1/models": {
        "object": "list",
        "data": [
            {"id": "Qwen/Qwen3-8B-AWQ", "object": "model", "created": 1, "owned_by": "vllm", "max_model_len": 40960}
        ],
    }
}

OPENROUTER: dict[str, Any] = {
    "/api/v1/models": {
        "data": [
            {
                "id": "openai/gpt-5",
                "canonical_slug": "openai/gpt-5",
                "created": 1_750_000_000,
                "context_length": 400_000,
                "description": "A model.",
                "architecture": {
                    "input_modalities": ["text", "image"],
                    "output_modalities": ["text"],
                    "tokenizer": "GPT",
                },
                "pricing": {"prompt": "0.00000125", "completion": "0.00001"},
                "top_provider": {"context_length": 400_000, "max_completion_tokens": 128_000},
                "supported_parameters": ["tools", "reasoning", "max_tokens"],
            }
        ]
    }
}

ANTHROPIC: dict[str, Any] = {
    "/v1/models": {
        "data": [
            {
                "type": "model",
                "id": "claude-sonnet-5",
                "display_name": "Claude Sonnet 5",
                "created_at": "2026-02-19T00:00:00Z",
                "max_input_tokens": 1_000_000,
                "max_tokens": 128_000,
                "capabilities": {"image_input": {"supported": True}, "thinking": {"supported": True, "types": {}}},
            }
        ],
        "has_more": False,
        "first_id": "claude-sonnet-5",
        "last_id": "claude-sonnet-5",
    }
}

GEMINI: dict[str, Any] = {
    "/v1beta/openai/models": {
        "object": "list",
        "data": [
            {"id": "models/gemini-3-flash", "object": "model", "owned_by": "google", "display_name": "Gemini 3 Flash"}
        ],
    }
}

ZAI: dict[str, Any] = {
    "/api/paas/v4/models": {
        "object": "list",
        "data": [{"id": "glm-5", "object": "model", "created": 1, "owned_by": "z-ai"}],
    }
}

AZURE: dict[str, Any] = {
    "/openai/v1/models": {"object": "list", "data": [{"id": "gpt-5", "object": "model", "created_at": 1_750_000_000}]}
}

MISTRAL: dict[str, Any] = {
    "/v1/models": {
        "data": [
            {
                "id": "mistral-large",
                "max_context_length": 131_072,
                "capabilities": {"completion_chat": True, "function_calling": True, "vision": False},
                "aliases": ["mistral-large-latest"],
            }
        ]
    }
}

TOGETHER: dict[str, Any] = {
    "/v1/models": [{"id": "togethercomputer/m2-bert-80M", "type": "embedding", "context_length": 8192}]
}

#: A server whose routes are not below `/v1` although its URL has no path.
ROOTLESS: dict[str, Any] = {"/models": {"data": [{"id": "plain"}]}}
