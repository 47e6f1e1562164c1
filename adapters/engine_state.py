"""Paths of engines that are about their state, not about inference: they are never forwarded, since an engine serves all clients.

They unload models, read adapters and weights from files, empty caches, break off other requests, stop the server, or tell its
arguments. Searched anywhere in a path, since engines can be configured to serve below a prefix.
"""

from __future__ import annotations

_SEGMENTS = frozenset(
    (
        # llama-server
        *("cors-proxy", "lora-adapters", "props", "slots", "stream", "streams", "tools"),
        # any server: whisper.cpp, TabbyAPI, text-generation-webui, KoboldCpp
        *("admin", "internal", "load", "reload", "shutdown", "unload"),
        # vLLM
        *("abort_requests", "collective_rpc", "init_weight_transfer_engine", "is_paused", "is_sleeping"),
        *("load_lora_adapter", "pause", "reset_encoder_cache", "reset_mm_cache", "reset_prefix_cache", "resume"),
        *(
            "scale_elastic_ep",
            "server_info",
            "sleep",
            "start_profile",
            "stop_profile",
            "unload_lora_adapter",
            "wake_up",
        ),
        # SGLang
        *(
            "abort_request",
            "clear_hicache_storage_backend",
            "close_session",
            "configure_logging",
            "continue_generation",
        ),
        *("destroy_weights_update_group", "dump_expert_distribution_record", "flush_cache", "freeze_gc"),
        *(
            "get_internal_state",
            "get_server_info",
            "get_weights_by_name",
            "init_weights_send_group_for_remote_instance",
        ),
        *("init_weights_update_group", "load_lora_adapter_from_tensors", "open_session", "pause_generation"),
        *("release_memory_occupation", "resume_memory_occupation", "send_weights_to_remote_instance"),
        *("set_internal_state", "slow_down", "start_expert_distribution_record", "stop_expert_distribution_record"),
        # ComfyUI, and stable-diffusion's web UI
        *("free", "refresh-checkpoints", "reload-checkpoint", "server-kill", "server-restart", "server-stop"),
        "unload-checkpoint",
    )
)
#: vLLM and SGLang have several ways to replace the weights of a model.
_PREFIXES = ("update_weight",)


def is_engine_state(path: str) -> bool:
    """Whether a path, in any spelling of its letters, is about an engine's state."""
    segments = path.lower().strip("/").split("/")
    return any(segment in _SEGMENTS or segment.startswith(_PREFIXES) for segment in segments)
