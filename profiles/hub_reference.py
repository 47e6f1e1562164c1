"""How models of a registry are named: `hf.co/org/repo:Q4_K_M`, `hf:org/repo`, `-hf org/repo:Q4`, `qwen3:8b`. Values only."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from hostler.profiles.sources import SourceError

_PART = r"[A-Za-z0-9][\w.-]*"
_REPOSITORY = re.compile(rf"({_PART})/({_PART}?)(?:@([\w.-]+))?(?::([\w.-]+))?(?:/(.+\.gguf))?", re.IGNORECASE)
_OLLAMA = re.compile(rf"(?:(?:https?://)?registry\.ollama\.ai/|(?:https?://)?ollama\.com/|ollama:)?"
                     rf"(?:({_PART})/)?({_PART})(?::([\w.-]+))?")  # fmt: skip

#: What may stand in front of a repository of the Hugging Face Hub.
_HUB_PREFIXES = (
    "https://huggingface.co/", "http://huggingface.co/", "https://hf.co/", "huggingface.co/", "hf.co/", "hf://", "hf:",
    "-hf ", "--hf-repo ", "-hfr ",
)  # fmt: skip
_OLLAMA_PREFIXES = (
    "ollama:",
    "registry.ollama.ai/",
    "https://registry.ollama.ai/",
    "ollama.com/",
    "https://ollama.com/",
)


class HubReference(msgspec.Struct, frozen=True, kw_only=True):
    """A model of a registry. `tag` is a quantization (`hub`) or a tag (`ollama`); empty: the usual one.

    `file` is a certain file of the repository.
    """

    registry: Literal["hub", "ollama"]
    repository: str
    revision: str = "main"
    tag: str = ""
    file: str = ""

    @property
    def name(self) -> str:
        """The reference as clients of Ollama write it."""
        if self.registry == "ollama":
            return f"{self.repository.removeprefix('library/')}:{self.tag or 'latest'}"
        return f"hf.co/{self.repository}" + (f":{self.tag}" if self.tag else "")


def parse_reference(text: str, *, by_ollama: bool = False) -> HubReference | None:
    """The model that a text names, in any spelling; `None` for words to search for.

    A name without a registry is one of the hub if it has an organisation, and one of Ollama's registry if it has a tag
    only; `by_ollama` it is one of Ollama's in both cases. Raises `SourceError` for a text that begins like a name and is none.
    """
    text = " ".join(text.split())
    for prefix in _HUB_PREFIXES:
        if text.lower().startswith(prefix):
            return _on_hub(text[len(prefix) :], text)
    if text.lower().startswith(_OLLAMA_PREFIXES):
        return _in_ollama(text)
    if "/" in text and " " not in text:
        return _in_ollama(text) if by_ollama else _on_hub(text, text)
    return _in_ollama(text) if ":" in text and " " not in text else None


def is_registry_name(text: str) -> bool:
    """Whether a client of Ollama names a model of a registry by this."""
    try:
        return parse_reference(text, by_ollama=True) is not None
    except SourceError:
        return False


def hub_link(text: str, quantization: str | None = None) -> str | None:
    """What a link to a repository or file of the Hugging Face Hub names, with a quantization; `None` for other texts.

    Raises `SourceError` for a link that names no repository.
    """
    if not text.lower().startswith(_HUB_PREFIXES):
        return None
    reference = parse_reference(text)
    if reference is None or reference.file:
        return text
    return msgspec.structs.replace(reference, tag=quantization or reference.tag).name


def _on_hub(name: str, text: str) -> HubReference:
    # As in the browser's address bar.
    name = re.sub(r"/(?:blob|resolve)/([\w.-]+)/", r"@\1/", name.partition("?")[0].rstrip("/"))
    name = re.sub(r"/tree/([\w.-]+)$", r"@\1", name)
    match = _REPOSITORY.fullmatch(name)
    if match is None or ".." in name:
        raise SourceError(f"{text!r} does not have the form hf.co/organisation/repository:quantization")
    return HubReference(
        registry="hub",
        repository=f"{match[1]}/{match[2]}",
        revision=match[3] or "main",
        tag=match[4] or "",
        file=match[5] or "",
    )


def _in_ollama(text: str) -> HubReference:
    match = _OLLAMA.fullmatch(text)
    if match is None or ".." in text:
        raise SourceError(f"{text!r} does not have the form name:tag or namespace/name:tag")
    namespace = match[1] or "library"
    return HubReference(registry="ollama", repository=f"{namespace}/{match[2]}", tag=match[3] or "latest")
