"""Spellings of model names: Ollama's full form, the short form, and the form in which names are compared."""

from __future__ import annotations

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"


def ollama_name(name: str) -> str:
    """The name as Ollama shows it: always with a tag, without the default host and namespace.

    Characters that such a name cannot have (`@`, a third slash, a dot in the namespace) become `-`.
    """
    name = name.strip().replace("@", "-").removesuffix(":local")
    head, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        head, tag = name, ""
    head = _without(_without(head, DEFAULT_HOST), DEFAULT_NAMESPACE)
    namespace, slash, model = head.partition("/")
    if slash:
        head = f"{namespace.replace('.', '-')}/{model.replace('/', '-')}"
    return f"{head}:{tag or DEFAULT_TAG}"


def short_name(name: str) -> str:
    """The name without the default host, namespace and tag."""
    name = name.strip().removesuffix(":local")
    return _without(_without(name, DEFAULT_HOST), DEFAULT_NAMESPACE).removesuffix(f":{DEFAULT_TAG}")


def normalized(name: str) -> str:
    """The form in which all spellings of a name are equal, whatever their case, default host, namespace and tag."""
    return ollama_name(name).lower().removesuffix(f":{DEFAULT_TAG}")


def _without(name: str, default: str) -> str:
    start = len(default) + 1
    return name[start:] if name[:start].lower() == f"{default}/" else name
