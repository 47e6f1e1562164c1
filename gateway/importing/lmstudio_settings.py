"""Settings of LM Studio for one model, by their keys: what each becomes in a profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from hostler.gateway.importing.report import NoteKind
from hostler.gateway.importing.request_filters import as_rules
from hostler.gateway.importing.sampling_parameters import whole_number
from hostler.gateway.importing.yaml_source import is_number

#: Settings that are a whole number, with their key in a profile and the least value.
_NUMBERS: Final[Mapping[str, tuple[str, int]]] = {
    "llm.load.contextLength": ("context", 1),
    "embedding.load.contextLength": ("context", 1),
    "llm.load.llama.evalBatchSize": ("batch", 1),
    "embedding.load.llama.evalBatchSize": ("batch", 1),
    "llm.load.llama.cpuThreadPoolSize": ("threads", 1),
    "llm.load.numParallelSessions": ("parallel", 1),
}
#: Settings that are an argument with a value.
_ARGUMENTS: Final[Mapping[str, str]] = {
    "llm.load.llama.physicalBatchSize": "--ubatch-size",
    "llm.load.llama.kCacheQuantizationType": "--cache-type-k",
    "llm.load.llama.vCacheQuantizationType": "--cache-type-v",
    "llm.load.llama.ropeFrequencyBase": "--rope-freq-base",
    "llm.load.llama.ropeFrequencyScale": "--rope-freq-scale",
    "llm.load.seed": "--seed",
}
#: Settings that are an argument if they are true, and one if they are false.
_SWITCHES: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "llm.load.llama.flashAttention": (("--flash-attn", "on"), ("--flash-attn", "off")),
    "llm.load.offloadKVCacheToGpu": ((), ("--no-kv-offload",)),
    "llm.load.useUnifiedKvCache": (("--kv-unified",), ()),
    "llm.load.llama.tryMmap": ((), ("--no-mmap",)),
    "llm.load.llama.keepModelInMemory": (("--mlock",), ()),
}
#: Settings of predictions, and the members of requests.
_SAMPLING: Final[Mapping[str, str]] = {
    "llm.prediction.temperature": "temperature",
    "llm.prediction.topKSampling": "top_k",
    "llm.prediction.topPSampling": "top_p",
    "llm.prediction.minPSampling": "min_p",
    "llm.prediction.repeatPenalty": "repeat_penalty",
    "llm.prediction.llama.presencePenalty": "presence_penalty",
    "llm.prediction.llama.frequencyPenalty": "frequency_penalty",
    "llm.prediction.maxPredictedTokens": "max_tokens",
    "llm.prediction.stopStrings": "stop",
    "llm.prediction.seed": "seed",
    "llm.prediction.llama.xtcProbability": "xtc_probability",
    "llm.prediction.llama.xtcThreshold": "xtc_threshold",
    "llm.prediction.llama.locallyTypicalSampling": "typical_p",
}


#: Settings without a counterpart, and what there is instead.
_INSTEAD: Final[Mapping[str, str]] = {
    "llm.prediction.promptTemplate": "the template of the model's file is used; another one is the argument --chat-template-file",
    "llm.prediction.structured": "clients ask for structured answers themselves: response_format",
    "llm.prediction.tools": "tools are those of clients",
    "llm.prediction.contextPrefill": "a profile adds a text with request.system",
    "llm.prediction.contextOverflowPolicy": "a conversation that is too long is refused, or goes to a backend with more context",
    "llm.prediction.logProbs": "clients ask for probabilities themselves: logprobs",
    "llm.prediction.speculativeDecoding.draftModel": "name the file of the draft model in args, --model-draft, or put it beside the model",
    "load.gpuSplitConfig": "the engine splits a model over the GPUs of devices; args takes --tensor-split",
    "load.gpuStrictVramCap": "supervisor.devices says how much memory of each GPU may be used",
    "llm.load.llama.autoFit": "a profile without gpu_layers is fitted to the memory that is free",
}
#: The beginning of the keys of a model's own settings, which its definition names.
_CUSTOM: Final = "ext.virtualModel.customField."

#: Notes what became of a key.
Noted = Callable[[NoteKind, str], None]


class ModelSettings:
    """Collects the settings of one model into its profile. A later value of a key replaces an earlier one."""

    def __init__(self) -> None:
        self._profile: dict[str, Any] = {}
        self._default: dict[str, Any] = {}
        self._arguments: dict[str, tuple[str, ...]] = {}
        self._variables: dict[str, str] = {}
        self._system = ""

    def add_to(self, profile: dict[str, Any]) -> None:
        """Write what was collected into the profile."""
        profile |= self._profile
        if arguments := [word for words in self._arguments.values() for word in words]:
            profile["args"] = [*profile.get("args", []), *arguments]
        rules, _ = as_rules(default=self._default, system=self._system)
        if rules:
            profile["request"] = rules

    def declare(self, name: str, variable: str, value: Any) -> None:
        """A setting of the model's own, which is a variable of its template, and its value if there is one."""
        self._variables[name] = variable
        if value is not None:
            self._default[f"chat_template_kwargs.{variable}"] = value

    def set(self, key: str, value: Any, note: Noted) -> None:
        """Take over a value; `note` says what became of it."""
        value = _checked(value)
        if value is None:
            self._forget(key)
            note("taken", "is switched off")
        elif key in _NUMBERS:
            name, least = _NUMBERS[key]
            number = whole_number(value, least)
            if number is None:
                note("missing", "is no valid number")
            else:
                self._profile[name] = number
                note("taken", name)
        elif key in _SWITCHES and isinstance(value, bool):
            self._arguments[key] = _SWITCHES[key][0 if value else 1]
            note("taken", " ".join(self._arguments[key]))
        elif key in _ARGUMENTS and _is_plain(value) and not isinstance(value, list):
            self._arguments[key] = (_ARGUMENTS[key], str(value))
            note("taken", _ARGUMENTS[key])
        elif key in _SAMPLING and _is_plain(value):
            if value not in ("", []):
                self._default[_SAMPLING[key]] = value
            note("taken", f"request.default.{_SAMPLING[key]}")
        elif key == "llm.prediction.systemPrompt" and isinstance(value, str):
            self._system = value
            note("changed", "is added to the system prompt, also where a client has one")
        elif key.endswith("acceleration.offloadRatio"):
            note(*self._offload(value))
        elif key == "llm.prediction.reasoning.parsing":
            note("changed", "the engine finds thoughts in answers as the template of the model marks them")
        elif key.startswith(_CUSTOM):
            note(*self._custom(key.rpartition(".")[2], value))
        else:
            note("missing", _INSTEAD.get(key, "Hostler has no such setting"))

    def _custom(self, name: str, value: Any) -> tuple[NoteKind, str]:
        if (variable := self._variables.get(name)) is None:
            return "missing", "the definition of the model, model.yaml, has no such field"
        self._default[f"chat_template_kwargs.{variable}"] = value
        return "taken", f"request.default.chat_template_kwargs.{variable}"

    def _forget(self, key: str) -> None:
        """Undo what an earlier value of the key set."""
        self._arguments.pop(key, None)
        self._default.pop(_SAMPLING.get(key, ""), None)
        self._profile.pop(_NUMBERS.get(key, ("",))[0], None)

    def _offload(self, value: Any) -> tuple[NoteKind, str]:
        if value == "max" or (isinstance(value, int | float) and value >= 1):
            self._profile["gpu_layers"] = "all"
        elif value in ("off", 0):
            self._profile["gpu_layers"] = 0
        else:
            self._profile["gpu_layers"] = "auto"
            return "changed", "a share of the layers: as many as fit are chosen"
        return "taken", "gpu_layers"


def _checked(value: Any) -> Any:
    """The value of a setting with a check mark, `None` if it is not marked."""
    if isinstance(value, dict) and "checked" in value:
        return value.get("value") if value["checked"] is True else None
    return value


def _is_plain(value: Any) -> bool:
    """Whether this is a text, a finite number, or a list of texts."""
    if isinstance(value, list):
        return all(isinstance(each, str) for each in value)
    return isinstance(value, str) or is_number(value, -(2.0**53))
