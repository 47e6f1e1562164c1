"""The engines that ship with the product, each with its command line, port, readiness, key and routes.

The programs are not installed with it. docs/engines.md says where to get them, and which versions were tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from hostler.profiles.engines import EngineEntry, Macro, ReadyRules, Service, SleepRules, StopRules
from hostler.profiles.templates import TemplateWord

_TEXT: Final[tuple[Service, ...]] = ("chat", "completions")
_LISTEN: Final[tuple[TemplateWord, ...]] = ("--host", "${host}", "--port", "${port}")

#: vLLM will drop `--model` of `vllm serve`.
_VLLM: Final[tuple[TemplateWord, ...]] = (
    "serve", "${model}", "--served-model-name", "${name}", *_LISTEN, "--max-model-len", "${context}",
    "--max-num-seqs", "${parallel}",
)  # fmt: skip
_SGLANG: Final[tuple[TemplateWord, ...]] = (
    "--model-path", "${model}", "--served-model-name", "${name}", *_LISTEN, "--context-length", "${context}",
    "--max-running-requests", "${parallel}", "--api-key", "${key}",
)  # fmt: skip
_WHISPER: Final[tuple[TemplateWord, ...]] = (
    "-m", "${model}", *_LISTEN, "--inference-path", "/v1/audio/transcriptions", ("-t", "${threads}"),
)  # fmt: skip
_DIFFUSION: Final[tuple[TemplateWord, ...]] = (
    "-m", "${model}", "--listen-ip", "${host}", "--listen-port", "${port}", ("-t", "${threads}"),
)  # fmt: skip
_TABBY: Final[tuple[TemplateWord, ...]] = (
    *_LISTEN, "--model-dir", "${parent}", "--model-name", "${basename}", "--max-seq-len", "${context}",
    "--disable-auth", "true",
)  # fmt: skip
_KOBOLD: Final[tuple[TemplateWord, ...]] = (
    "--model", "${model}", *_LISTEN, "--contextsize", "${context}", "--skiplauncher", "--quiet",
    ("--threads", "${threads}"), ("--gpulayers", "${gpu_layers}"), ("--mmproj", "${mmproj}"),
    ("--draftmodel", "${draft}"),
)  # fmt: skip
_LLAMA_PYTHON: Final[tuple[TemplateWord, ...]] = (
    "--model", "${model}", "--model_alias", "${name}", *_LISTEN, "--n_ctx", "${context}", "--n_batch", "${batch}",
    "--api_key", "${key}", ("--n_threads", "${threads}"), ("--n_gpu_layers", "${gpu_layers}"),
    ("--clip_model_path", "${mmproj}"),
)  # fmt: skip

#: Programs that are run directly.
_PROGRAMS: Final[Mapping[str, EngineEntry]] = {
    "llama-server": EngineEntry(command=("llama-server",), protocol="llamacpp", ready=ReadyRules(path="/health")),
    "embedded": EngineEntry(command=("embedded",), protocol="llamacpp", ready=ReadyRules(path="/health")),
    "vllm": EngineEntry(
        command=("vllm", *_VLLM), env={"VLLM_API_KEY": "${key}"}, ready="/health", serves=_TEXT,
        capabilities=("tools",),
    ),
    # The routes for it exist in the mode for development only, which has others that no key protects.
    "vllm-sleep": EngineEntry(
        command=("vllm", *_VLLM, "--enable-sleep-mode"),
        env={"VLLM_API_KEY": "${key}", "VLLM_SERVER_DEV_MODE": "1"}, ready="/health", serves=_TEXT, capabilities=("tools",),
        sleep=SleepRules(path="/sleep?level=1", wake="/wake_up"),
    ),
    "sglang": EngineEntry(
        command=("python3", "-m", "sglang.launch_server", *_SGLANG), ready="/health", serves=_TEXT,
        capabilities=("tools",),
    ),
    "whisper-server": EngineEntry(
        command=("whisper-server", *_WHISPER), ready="/health", key="none", serves=("transcriptions",)
    ),
    "sd-server": EngineEntry(
        command=("sd-server", *_DIFFUSION), ready="/v1/models", key="none", serves=("images",), watchdog_s=0.0
    ),
    "tabbyapi": EngineEntry(
        command=("python3", "main.py", *_TABBY), cwd="~/tabbyAPI", ready="/health", key="none", serves=_TEXT,
        capabilities=("tools",), model_name="${basename}",
    ),
    "koboldcpp": EngineEntry(
        command=("koboldcpp", *_KOBOLD), ready="/api/v1/model", key="none", serves=_TEXT, watchdog_s=0.0
    ),
    "mlx-lm": EngineEntry(
        command=("mlx_lm.server", "--model", "${model}", *_LISTEN, ("--draft-model", "${draft}")), ready="/health",
        key="none", serves=_TEXT, capabilities=("tools",), model_name="default_model",
    ),
    "llama-cpp-python": EngineEntry(
        command=("python3", "-m", "llama_cpp.server", *_LLAMA_PYTHON), ready=ReadyRules(port=True), serves=_TEXT,
        watchdog_s=0.0,
    ),
}  # fmt: skip

_LLAMA: Final[tuple[TemplateWord, ...]] = (
    "-m", "${model}", "--alias", "${name}", *_LISTEN, "-c", "${total_context}", "-np", "${parallel}", "-b", "${batch}",
    "--metrics", ("-t", "${threads}"), ("-ngl", "${gpu_layers}"), ("--mmproj", "${mmproj}"), ("-md", "${draft}"),
)  # fmt: skip


class _Image(msgspec.Struct, frozen=True, kw_only=True):
    """How a program runs in a container: `arguments` of the image, `entrypoint` where its own is another program, or was in
    earlier releases, what else is mounted, variables with their values, and the names of those that are passed on. `gpu`:
    options for its GPU, by runtime. `macros` are further ones of its preset."""

    name: str
    arguments: tuple[TemplateWord, ...] = ()
    entrypoint: str | None = None
    volumes: tuple[str, ...] = ()
    env: Mapping[str, str] = {}
    passed: tuple[str, ...] = ()
    gpu: Mapping[str, tuple[str, ...]] = {}
    macros: Mapping[str, Macro] = {}


_NVIDIA: Final[Mapping[str, tuple[str, ...]]] = {
    "docker": ("--gpus", "all"),
    "podman": ("--device", "nvidia.com/gpu=all"),
}
_NVIDIA_IPC: Final = {runtime: (*options, "--ipc", "host") for runtime, options in _NVIDIA.items()}
_HUB: Final = "${hub}:/root/.cache/huggingface"

_IMAGES: Final[Mapping[str, _Image]] = {
    "llama-server": _Image(
        name="ghcr.io/ggml-org/llama.cpp:server", arguments=_LLAMA, env={"LLAMA_API_KEY": "${key}"}
    ),
    # This one and SGLang download models themselves.
    "vllm": _Image(
        name="vllm/vllm-openai:latest", arguments=_VLLM, entrypoint="vllm", volumes=(_HUB,),
        env={"VLLM_API_KEY": "${key}"}, passed=("HF_TOKEN",), gpu=_NVIDIA_IPC,
    ),
    "sglang": _Image(
        name="lmsysorg/sglang:latest", arguments=("python3", "-m", "sglang.launch_server", *_SGLANG), volumes=(_HUB,),
        passed=("HF_TOKEN",), gpu=_NVIDIA_IPC,
    ),
    "whisper-server": _Image(
        name="ghcr.io/ggml-org/whisper.cpp:main", arguments=_WHISPER, entrypoint="whisper-server"
    ),
    "sd-server": _Image(
        name="ghcr.io/leejet/stable-diffusion.cpp:master", arguments=_DIFFUSION, entrypoint="/sd-server"
    ),
    "tabbyapi": _Image(
        name="ghcr.io/theroyallab/tabbyapi:latest", arguments=("main.py", *_TABBY), gpu=_NVIDIA
    ),
    # The image's command is a script that takes no arguments: it splits KCPP_ARGS as a shell does, and opens a tunnel to the
    # internet unless it is forbidden. It downloads the program to the volume.
    "koboldcpp": _Image(
        name="koboldai/koboldcpp:latest", volumes=("hostler-koboldcpp:/workspace",), macros={"options": ()},
        env={
            "KCPP_DONT_TUNNEL": "true",
            "KCPP_DONT_UPDATE": "true",
            "KCPP_ARGS": "".join((
                '--model "$MODEL_FILE" --host 0.0.0.0 --port ${port} --contextsize ${context} --skiplauncher',
                ' --mmproj "$MMPROJ_FILE" --draftmodel "$DRAFT_FILE"',  # empty by default
                ' $(test -z "$THREADS" || echo --threads "$THREADS")',
                ' $(test -z "$GPU_LAYERS" || echo --gpulayers "$GPU_LAYERS") ${options}',
            )),
            "MODEL_FILE": "${model}", "THREADS": "${threads}", "GPU_LAYERS": "${gpu_layers}",
            "MMPROJ_FILE": "${mmproj}", "DRAFT_FILE": "${draft}",
        },
    ),
    "llama-cpp-python": _Image(
        name="ghcr.io/abetlen/llama-cpp-python:latest", arguments=("python3", "-m", "llama_cpp.server", *_LLAMA_PYTHON)
    ),
}  # fmt: skip


def _in_container(runtime: str, name: str) -> EngineEntry:
    """The preset `name` in a container. The macros `image` and `run` are the image and further options of `run`."""
    image, program = _IMAGES[name], _PROGRAMS[name]
    options: list[TemplateWord] = [word for variable in image.env for word in ("--env", variable)]
    options += [("--volume", f"${{{file}}}:${{{file}}}:ro") for file in ("mmproj", "draft")]
    options += [word for volume in image.volumes for word in ("--volume", volume)]
    options += [word for variable in image.passed for word in ("--env", variable)]
    if image.entrypoint is not None:
        options += ("--entrypoint", image.entrypoint)
    command: tuple[TemplateWord, ...] = (
        runtime, "run", "--rm", "--init", "--name", "${container}", "--publish", "${address}:${port}",
        ("--volume", "${folder}:${folder}:ro"), *options, "${run}", "${image}",
        *(_inside(word) for word in image.arguments),
    )  # fmt: skip
    return EngineEntry(
        command=command,
        macros={"image": image.name, "run": image.gpu.get(runtime, ()), **image.macros},
        env=image.env,
        ready=program.ready,
        protocol=program.protocol,
        key=program.key,
        serves=program.serves,
        capabilities=program.capabilities,
        listens="anywhere",
        stop=StopRules(command=(runtime, "stop", "${container}")),
        cleanup=(runtime, "rm", "--force", "${container}"),
        model_name=program.model_name,
        watchdog_s=program.watchdog_s,
    )


def _inside(word: TemplateWord) -> TemplateWord:
    """A word of a command inside of a container, which listens on all of its addresses."""
    if isinstance(word, tuple):
        return tuple(each.replace("${host}", "0.0.0.0") for each in word)
    return word.replace("${host}", "0.0.0.0")


PRESETS: Final[Mapping[str, EngineEntry]] = {
    **_PROGRAMS,
    **{f"{name}-{runtime}": _in_container(runtime, name) for name in _IMAGES for runtime in ("docker", "podman")},
}
