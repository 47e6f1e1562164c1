"""llama-server's arguments that the embedded engine accepts, and what they set in llama.cpp.

Imports nothing of the product, so that the engine starts fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple


class BadArgument(Exception):
    """An invalid argument; the message is the line that llama-server would print."""


class Flag(NamedTuple):
    """One argument: its place in `CommonParams`, as `a.b`, and how its text is converted.

    With `constant` the argument takes no value.
    """

    names: tuple[str, ...]
    where: str
    convert: Callable[[str], Any] = str
    constant: Any = None


def _choice(prefix: str, **words: str) -> Callable[[str], Any]:
    """Converts a word to a member of one of xllamacpp's enumerations, imported only when used."""
    enumeration, _, start = prefix.partition(":")

    def convert(text: str) -> Any:
        import xllamacpp

        try:
            return getattr(getattr(xllamacpp, enumeration), start + words[text])
        except KeyError:
            raise ValueError(f"unknown value '{text}', expected one of: {', '.join(words)}") from None

    return convert


def _list_of(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: [convert(word) for word in text.split(",")]


def _cache_type(text: str) -> Any:
    import xllamacpp

    if text not in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"):
        raise ValueError(f"unsupported cache type: {text}")
    return getattr(xllamacpp.ggml_type, "GGML_TYPE_" + text.upper())


def _layers(text: str) -> int:
    return {"auto": -1, "all": -2}.get(text) or int(text)


def _directory(text: str) -> str:
    if not Path(text).is_dir():
        raise ValueError(f"not a directory: {text}")
    return text.rstrip("/") + "/"


def _switch(text: str) -> bool:
    if text not in ("on", "off", "true", "false", "enabled", "disabled", "1", "0"):
        raise ValueError(f"expected on or off, got '{text}'")
    return text in ("on", "true", "enabled", "1")


def _reasoning(text: str) -> int:
    return 1 if text == "on" else 0 if text == "off" else -1 if text == "auto" else int(text)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _aliases(text: str) -> set[str]:
    return set(_names(text))


def _template_arguments(text: str) -> dict[str, str]:
    import json

    return {key: json.dumps(value) for key, value in json.loads(text).items()}


def _content(text: str) -> str:
    return Path(text).read_text(encoding="utf-8")


def _keys(text: str) -> list[str]:
    return [line.strip() for line in _content(text).splitlines() if line.strip() and not line.startswith("#")]


def _adapter(text: str) -> list[Any]:
    import xllamacpp

    return [xllamacpp.CommonAdapterLoraInfo(path=path, scale=1.0) for path in _names(text)]


def _inverse(text: str) -> float:
    return 1.0 / float(text)


def _shares(text: str) -> list[float]:
    return [float(share) for share in text.replace("/", ",").split(",")]


#: All accepted arguments; others are rejected by name, as llama-server does.
FLAGS: Final[tuple[Flag, ...]] = (
    Flag(("-m", "--model"), "model.path"),
    Flag(("-a", "--alias"), "model_alias", _aliases),
    Flag(("--host",), "hostnames", _names),
    Flag(("--port",), "port", int),
    Flag(("-c", "--ctx-size"), "n_ctx", int),
    Flag(("-np", "--parallel"), "n_parallel", int),
    Flag(("-n", "--predict", "--n-predict"), "n_predict", int),
    Flag(("-b", "--batch-size"), "n_batch", int),
    Flag(("-ub", "--ubatch-size"), "n_ubatch", int),
    Flag(("--keep",), "n_keep", int),
    Flag(("-t", "--threads"), "cpuparams.n_threads", int),
    Flag(("-tb", "--threads-batch"), "cpuparams_batch.n_threads", int),
    Flag(("--poll",), "cpuparams.poll", int),
    Flag(("--threads-http",), "n_threads_http", int),
    Flag(("-ngl", "--gpu-layers", "--n-gpu-layers"), "n_gpu_layers", _layers),
    Flag(("-sm", "--split-mode"), "split_mode",
         _choice("llama_split_mode:LLAMA_SPLIT_MODE_", none="NONE", layer="LAYER", row="ROW", tensor="TENSOR")),
    Flag(("-ts", "--tensor-split"), "tensor_split", _shares),
    Flag(("-mg", "--main-gpu"), "main_gpu", int),
    Flag(("-nkvo", "--no-kv-offload"), "no_kv_offload", constant=True),
    Flag(("-kvo", "--kv-offload"), "no_kv_offload", constant=False),
    Flag(("-nr", "--no-repack"), "no_extra_bufts", constant=True),
    Flag(("--numa",), "numa",
         _choice("ggml_numa_strategy:GGML_NUMA_STRATEGY_", distribute="DISTRIBUTE", isolate="ISOLATE", numactl="NUMACTL")),
    Flag(("--load-mode",), "load_mode",
         _choice("llama_load_mode:LLAMA_LOAD_MODE_", auto="AUTO", none="NONE", mmap="MMAP", mlock="MLOCK",
                 dio="DIRECT_IO", **{"mmap+mlock": "MMAP_MLOCK"})),
    Flag(("-fit", "--fit"), "fit_params", _switch),
    Flag(("-fitc", "--fit-ctx"), "fit_params_min_ctx", int),
    Flag(("--check-tensors",), "check_tensors", constant=True),
    Flag(("--warmup",), "warmup", constant=True),
    Flag(("--no-warmup",), "warmup", constant=False),
    Flag(("-fa", "--flash-attn"), "flash_attn_type",
         _choice("llama_flash_attn_type:LLAMA_FLASH_ATTN_TYPE_", on="ENABLED", off="DISABLED", auto="AUTO")),
    Flag(("-ctk", "--cache-type-k"), "cache_type_k", _cache_type),
    Flag(("-ctv", "--cache-type-v"), "cache_type_v", _cache_type),
    Flag(("-kvu", "--kv-unified"), "kv_unified", constant=True),
    Flag(("-no-kvu", "--no-kv-unified"), "kv_unified", constant=False),
    Flag(("--swa-full",), "swa_full", constant=True),
    Flag(("--context-shift",), "ctx_shift", constant=True),
    Flag(("--no-context-shift",), "ctx_shift", constant=False),
    Flag(("-cram", "--cache-ram"), "cache_ram_mib", int),
    Flag(("--cache-prompt",), "cache_prompt", constant=True),
    Flag(("--no-cache-prompt",), "cache_prompt", constant=False),
    Flag(("--cache-reuse",), "n_cache_reuse", int),
    Flag(("--cache-idle-slots",), "cache_idle_slots", constant=True),
    Flag(("--no-cache-idle-slots",), "cache_idle_slots", constant=False),
    Flag(("-ctxcp", "--ctx-checkpoints", "--swa-checkpoints"), "n_ctx_checkpoints", int),
    Flag(("--slot-save-path",), "slot_save_path", _directory),
    Flag(("-sps", "--slot-prompt-similarity"), "slot_prompt_similarity", float),
    Flag(("--embedding", "--embeddings"), "embedding", constant=True),
    Flag(("--pooling",), "pooling_type",
         _choice("llama_pooling_type:LLAMA_POOLING_TYPE_", none="NONE", mean="MEAN", cls="CLS", last="LAST", rank="RANK")),
    Flag(("--embd-normalize",), "embd_normalize", int),
    Flag(("--rope-scaling",), "rope_scaling_type",
         _choice("llama_rope_scaling_type:LLAMA_ROPE_SCALING_TYPE_", none="NONE", linear="LINEAR", yarn="YARN")),
    Flag(("--rope-scale",), "rope_freq_scale", _inverse),
    Flag(("--rope-freq-base",), "rope_freq_base", float),
    Flag(("--rope-freq-scale",), "rope_freq_scale", float),
    Flag(("--yarn-orig-ctx",), "yarn_orig_ctx", int),
    Flag(("--yarn-ext-factor",), "yarn_ext_factor", float),
    Flag(("--yarn-attn-factor",), "yarn_attn_factor", float),
    Flag(("--yarn-beta-slow",), "yarn_beta_slow", float),
    Flag(("--yarn-beta-fast",), "yarn_beta_fast", float),
    Flag(("-md", "--model-draft", "--spec-draft-model"), "speculative.draft.mparams.path"),
    Flag(("--spec-type",), "speculative.types",
         _list_of(_choice("common_speculative_type:COMMON_SPECULATIVE_TYPE_",
                          **{"none": "NONE", "draft-simple": "DRAFT_SIMPLE", "draft-mtp": "DRAFT_MTP",
                             "draft-eagle3": "DRAFT_EAGLE3",
                             "ngram-simple": "NGRAM_SIMPLE", "ngram-map-k": "NGRAM_MAP_K",
                             "ngram-map-k4v": "NGRAM_MAP_K4V", "ngram-mod": "NGRAM_MOD", "ngram-cache": "NGRAM_CACHE"}))),
    Flag(("--draft", "--draft-n", "--draft-max", "--spec-draft-n-max"), "speculative.draft.n_max", int),
    Flag(("--draft-min", "--draft-n-min", "--spec-draft-n-min"), "speculative.draft.n_min", int),
    Flag(("--draft-p-min", "--spec-draft-p-min"), "speculative.draft.p_min", float),
    Flag(("-ngld", "--gpu-layers-draft", "--n-gpu-layers-draft", "--spec-draft-ngl"), "speculative.draft.n_gpu_layers", _layers),
    Flag(("-mm", "--mmproj"), "mmproj.path"),
    Flag(("--no-mmproj",), "no_mmproj", constant=True),
    Flag(("--mmproj-offload",), "mmproj_use_gpu", constant=True),
    Flag(("--no-mmproj-offload",), "mmproj_use_gpu", constant=False),
    Flag(("--lora",), "lora_adapters", _adapter),
    Flag(("--jinja",), "use_jinja", constant=True),
    Flag(("--no-jinja",), "use_jinja", constant=False),
    Flag(("--chat-template",), "chat_template"),
    Flag(("--chat-template-file",), "chat_template", _content),
    Flag(("--chat-template-kwargs",), "default_template_kwargs", _template_arguments),
    Flag(("--reasoning-format",), "reasoning_format",
         _choice("common_reasoning_format:COMMON_REASONING_FORMAT_", none="NONE", auto="AUTO", deepseek="DEEPSEEK",
                 **{"deepseek-legacy": "DEEPSEEK_LEGACY"})),
    Flag(("-rea", "--reasoning"), "enable_reasoning", _reasoning),
    Flag(("--reasoning-budget",), "sampling.reasoning_budget_tokens", int),
    Flag(("-s", "--seed"), "sampling.seed", int),
    Flag(("--samplers",), "sampling.samplers"),
    Flag(("--temp", "--temperature"), "sampling.temp", float),
    Flag(("--top-k",), "sampling.top_k", int),
    Flag(("--top-p",), "sampling.top_p", float),
    Flag(("--min-p",), "sampling.min_p", float),
    Flag(("--typical", "--typical-p"), "sampling.typ_p", float),
    Flag(("--repeat-last-n",), "sampling.penalty_last_n", int),
    Flag(("--repeat-penalty",), "sampling.penalty_repeat", float),
    Flag(("--presence-penalty",), "sampling.penalty_present", float),
    Flag(("--frequency-penalty",), "sampling.penalty_freq", float),
    Flag(("--api-key",), "api_keys", _names),
    Flag(("--api-key-file",), "api_keys", _keys),
    Flag(("--api-prefix",), "api_prefix"),
    Flag(("--metrics",), "endpoint_metrics", constant=True),
    Flag(("--props",), "endpoint_props", constant=True),
    Flag(("--slots",), "endpoint_slots", constant=True),
    Flag(("--no-slots",), "endpoint_slots", constant=False),
    Flag(("--ui", "--webui"), "ui", constant=True),
    Flag(("--no-ui", "--no-webui"), "ui", constant=False),
    Flag(("--cors-origins",), "cors_origins"),
    Flag(("--offline",), "offline", constant=True),
    Flag(("-to", "--timeout"), "timeout_read", int),
    Flag(("--sse-ping-interval",), "sse_ping_interval", int),
    Flag(("--sleep-idle-seconds",), "sleep_idle_seconds", int),
    Flag(("--reuse-port",), "reuse_port", constant=True),
    Flag(("-lv", "--verbosity", "--log-verbosity"), "verbosity", int),
    Flag(("--log-jsonl",), "log_json", constant=True),
)  # fmt: skip

#: Arguments that expand to several.
COMPOUND: Final[Mapping[str, tuple[str, ...]]] = {
    "--rerank": ("--embeddings", "--pooling", "rank"),
    "--reranking": ("--embeddings", "--pooling", "rank"),
}

_BY_NAME: Final[Mapping[str, Flag]] = {name: flag for flag in FLAGS for name in flag.names}


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """The values by their place in `CommonParams`. The last one of a name wins, as in llama-server. Raises `BadArgument`."""
    values: dict[str, Any] = {}
    waiting = [*reversed(arguments)]
    while waiting:
        name = waiting.pop()
        if name.startswith("--"):
            name = name.replace("_", "-")
        if name in COMPOUND:
            waiting.extend(reversed(COMPOUND[name]))
            continue
        flag = _BY_NAME.get(name)
        if flag is None:
            raise BadArgument(f"error: invalid argument: {name}")
        if flag.constant is not None:
            values[flag.where] = flag.constant
            continue
        if not waiting:
            raise BadArgument(f'error while handling argument "{name}": expected value for argument')
        text = waiting.pop()
        try:
            values[flag.where] = flag.convert(text)
        except (ValueError, OSError, ZeroDivisionError) as error:
            raise BadArgument(f'error while handling argument "{name}": {error}') from error
    return values


def parameters(values: Mapping[str, Any], environment: Mapping[str, str]) -> Any:
    """The `CommonParams` for these values; others keep llama.cpp's defaults."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.port = 8080
    params.ui = False
    # By default llama.cpp accepts requests from every web page: reject them.
    params.cors_origins = "localhost"
    params.cors_origins_explicit = True
    if key := environment.get("LLAMA_API_KEY"):
        params.api_keys = _names(key)
    for where, value in values.items():
        *path, last = where.split(".")
        owner = params
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, last, value)
    if "timeout_read" in values:
        params.timeout_write = values["timeout_read"]
    if "speculative.draft.mparams.path" in values and "speculative.types" not in values:
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    _mark_sampling(params.sampling, values)
    return params


def _mark_sampling(sampling: Any, values: Mapping[str, Any]) -> None:
    """Mark the sampling values that were given: a model file may set the others."""
    import xllamacpp

    words = {
        "samplers": "SAMPLERS", "temp": "TEMP", "top_k": "TOP_K", "top_p": "TOP_P", "min_p": "MIN_P",
        "penalty_last_n": "PENALTY_LAST_N", "penalty_repeat": "PENALTY_REPEAT",
    }  # fmt: skip
    for attribute, word in words.items():
        bit = getattr(xllamacpp.common_params_sampling_config, "COMMON_PARAMS_SAMPLING_CONFIG_" + word, None)
        if bit is not None and f"sampling.{attribute}" in values:
            sampling.user_sampling_config |= int(bit)


def usage() -> str:
    """The help text: all accepted arguments, one per line."""
    lines = [
        "usage: python -m hostler.supervisor.embedded.server -m FILE [argument ...]",
        "",
        "arguments, as llama-server's:",
    ]
    for flag in FLAGS:
        lines.append("  " + ", ".join(flag.names) + ("" if flag.constant is not None else " VALUE"))
    lines.extend(f"  {name}" for name in COMPOUND)
    return "\n".join(lines)
