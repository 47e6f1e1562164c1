"""What edits of YAML texts need: nodes with their places, new text, and an environment in which every variable is set."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any


class AnyEnvironment(dict[str, str]):
    """`os.environ`, in which every variable is set: the service may have variables that this command does not."""

    def get(self, key: str, default: Any = None) -> Any:
        return os.environ.get(key, "1")


def last_line(node: Any) -> int:
    """The last line of `node` itself: its end mark lies behind the comments that follow."""
    if isinstance(node.value, list) and node.value:
        last = node.value[-1]
        inside = max(last_line(each) for each in (last if isinstance(last, tuple) else (last,)))
        return max(inside, int(node.end_mark.line)) if node.flow_style else inside
    end = node.end_mark
    return int(end.line) if end.column or end.line == node.start_mark.line else int(end.line) - 1


def to_yaml(value: Any) -> str:
    """A value in YAML's block style."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 4096
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()


def round_trip(text: str, change: Callable[[Any], None]) -> str:
    """A text whose root `change` has changed. Comments are kept, and quotes; indentation and alignment may change."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    root: Any = yaml.load(text)
    change(root)
    stream = io.StringIO()
    yaml.dump(root, stream)
    return stream.getvalue()


def compose(text: str) -> Any:
    """The root node of a text; `None` if it is empty."""
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).compose(text)


def child(node: Any, name: str) -> Any:
    """The value of a key; `None` if there is none."""
    return next((value for key, value in pairs(node) if key.value == name), None)


def pairs(node: Any) -> list[tuple[Any, Any]]:
    """The keys and values of a mapping; empty for anything else."""
    return node.value if node is not None and node.id == "mapping" else []


def pairs_at(root: Any, path: tuple[str, ...]) -> list[tuple[Any, Any]]:
    """The keys and values of the mapping below these keys."""
    for step in path:
        root = child(root, step)
    return pairs(root)


def scalars(node: Any) -> list[Any]:
    """All scalar values below a node, without keys."""
    if node is None:
        return []
    if node.id == "scalar":
        return [node]
    inner = [value for _, value in node.value] if node.id == "mapping" else node.value
    return [each for value in inner for each in scalars(value)]
