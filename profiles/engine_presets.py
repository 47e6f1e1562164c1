"""The engines that ship with the product, each with its command line, port, readiness, key and routes.

The programs are not installed with it. docs/engines.md says where to get them, and which versions were tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

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

#: Images and their arguments.
_IMAGES: Final[Mapping[str, tuple[str, tuple[TemplateWord, ...]]]] = {
    "llama-server": ("ghcr.io/ggml-org/llama.cpp:server", _LLAMA),
    "vllm": ("vllm/vllm-openai:latest", _VLLM),
    "sglang": ("lmsysorg/sglang:latest", ("python3", "-m", "sglang.launch_server", *_SGLANG)),
    "whisper-server": ("ghcr.io/ggml-org/whisper.cpp:main", _WHISPER),
    "sd-server": ("ghcr.io/leejet/stable-diffusion.cpp:master", _DIFFUSION),
    "tabbyapi": ("ghcr.io/theroyallab/tabbyapi:latest", ("main.py", *_TABBY)),
    "koboldcpp": ("koboldai/koboldcpp:latest", ()),
    "llama-cpp-python": (
        "ghcr.io/abetlen/llama-cpp-python:latest",
        ("python3", "-m", "llama_cpp.server", *_LLAMA_PYTHON),
    ),
}

#: Options of `docker run` and `podman run` for the images that need a GPU.
_GPU: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "docker": {"vllm": ("--gpus", "all", "--ipc", "host"), "sglang": ("--gpus", "all", "--ipc", "host"),
               "tabbyapi": ("--gpus", "all")},
    "podman": {"vllm": ("--device", "nvidia.com/gpu=all", "--ipc", "host"),
               "sglang": ("--device", "nvidia.com/gpu=all", "--ipc", "host"),
               "tabbyapi": ("--device", "nvidia.com/gpu=all")},
}  # fmt: skip


#: Environment variables of containers.
_CONTAINER_ENV: Final[Mapping[str, Mapping[str, str]]] = {
    "vllm": {"VLLM_API_KEY": "${key}"},
    "llama-server": {"LLAMA_API_KEY": "${key}"},
    # The image's command is a script that takes no arguments: it splits KCPP_ARGS as a shell does, and opens a tunnel to the
    # internet unless it is forbidden.
    "koboldcpp": {
        "KCPP_DONT_TUNNEL": "true",
        "KCPP_DONT_UPDATE": "true",
        "KCPP_ARGS": "".join((
            '--model "$MODEL_FILE" --host 0.0.0.0 --port ${port} --contextsize ${context} --skiplauncher',
            ' --mmproj "$MMPROJ_FILE" --draftmodel "$DRAFT_FILE"',  # empty by default
            ' $(test -z "$THREADS" || echo --threads "$THREADS")',
            ' $(test -z "$GPU_LAYERS" || echo --gpulayers "$GPU_LAYERS") ${options}',
        )),
        "MODEL_FILE": "${model}", "THREADS": "${threads}", "GPU_LAYERS": "${gpu_layers}", "MMPROJ_FILE": "${mmproj}",
        "DRAFT_FILE": "${draft}",
    },
}  # fmt: skip

#: Programs of images whose own entrypoint is another one, or was another one in earlier releases.
_ENTRYPOINTS: Final[Mapping[str, str]] = {"vllm": "vllm", "whisper-server": "whisper-server", "sd-server": "/sd-server"}

#: What else is mounted.
_VOLUMES: Final[Mapping[str, tuple[str, ...]]] = {
    "vllm": ("${hub}:/root/.cache/huggingface",),
    "sglang": ("${hub}:/root/.cache/huggingface",),
    "koboldcpp": ("hostler-koboldcpp:/workspace",),  # the program, which the image downloads
}


def _in_container(runtime: str, name: str) -> EngineEntry:
    """The preset `name` in a container. The macros `image` and `run` are the image and further options of `run`."""
    image, arguments = _IMAGES[name]
    program = _PROGRAMS[name]
    macros: dict[str, Macro] = {"image": image, "run": _GPU[runtime].get(name, ())}
    if name == "koboldcpp":
        macros["options"] = ()
    env = _CONTAINER_ENV.get(name, {})
    options: list[TemplateWord] = [word for variable in env for word in ("--env", variable)]
    options += [("--volume", f"${{{file}}}:${{{file}}}:ro") for file in ("mmproj", "draft")]
    options += [word for volume in _VOLUMES.get(name, ()) for word in ("--volume", volume)]
    if name in ("vllm", "sglang"):  # they download models themselves
        options += ("--env", "HF_TOKEN")
    if name in _ENTRYPOINTS:
        options += ("--entrypoint", _ENTRYPOINTS[name])
    command: tuple[TemplateWord, ...] = (
        runtime, "run", "--rm", "--init", "--name", "${container}", "--publish", "${address}:${port}",
        ("--volume", "${folder}:${folder}:ro"), *options, "${run}", "${image}",
        *(_inside(word) for word in arguments),
    )  # fmt: skip
    return EngineEntry(
        command=command,
        macros=macros,
        env=env,
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
