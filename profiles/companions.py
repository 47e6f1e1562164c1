"""Which files belong to a model: projectors for images and sound (`mmproj`), and drafts, MTP heads among them.

Decides by headers first, then by names. Values only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Final

from hostler.profiles.gguf import tensors
from hostler.profiles.schema import ModelFacts

#: Separates the words of a file's name.
_BREAK = re.compile(r"[-_. ]+")
_PART = re.compile(r"-\d{5}-of-\d{5}$")
#: Words of a file's name that say how it is stored, not what it is.
_STORAGE = re.compile(
    r"(i?q\d\w*|tq\d\w*|[kmsl]|x+[sl]|bf16|f16|f32|fp16|fp32|mxfp4|nvfp4|ud|imat|imatrix|gguf|moe|\d)", re.I
)
_PROJECTOR_WORDS: Final = frozenset({"mmproj", "model", "projector", "vision", "audio"})
_DRAFT_WORDS: Final = frozenset({"draft", "mtp", "eagle", "eagle3", "dflash", "speculator"})

#: Of several projectors of a model, the first of these is used: less takes quality, more takes memory only.
_PREFERRED: Final = ("F16", "BF16", "Q8_0", "F32")

#: A draft is smaller than its model by this factor.
_SMALLER: Final = 2


def model_stem(path: PurePath) -> str:
    """The file's name without its ending and the number of its part."""
    stem = path.name.removesuffix(path.suffix) if path.suffix.lower() == ".gguf" else path.name
    return _PART.sub("", stem)


def is_projector(path: Path, facts: ModelFacts) -> bool:
    """Whether this is a projector, which is loaded beside a model."""
    if facts.architecture == "clip" or facts.metadata.get("general.type") in ("mmproj", "clip-vision"):
        return True
    return "mmproj" in _words(path) and not facts.training_context


def is_draft(path: Path, facts: ModelFacts) -> bool:
    """Whether this is a model that only drafts for a larger one."""
    return facts.metadata.get("general.type") == "draft" or drafts_by_name(path)


def drafts_by_name(path: PurePath) -> bool:
    """Whether a file's name says that it drafts."""
    return not _DRAFT_WORDS.isdisjoint(_words(path))


def best_projector(
    model: Path, facts: ModelFacts, projectors: Mapping[Path, ModelFacts], chats: Mapping[Path, ModelFacts]
) -> Path | None:
    """The projector of a model among those in its folder. `chats` are all models that could have one."""
    beside = {path: each for path, each in projectors.items() if path.parent == model.parent}
    siblings = [path for path in chats if path.parent == model.parent]
    named = [path for path in beside if _is_named_for(projector_base(path), model, facts, beside[path])]
    fitting = named or [path for path, each in beside.items() if _may_serve(path, each, model, facts, siblings, chats)]
    return min(fitting, key=lambda path: (_rank(beside[path]), path), default=None)


def may_draft(draft: ModelFacts, model: ModelFacts) -> bool:
    """Whether a model is smaller than another one, with the same vocabulary as far as is known."""
    mine, its = vocabulary(model), vocabulary(draft)
    return draft.parameters * _SMALLER <= model.parameters and not (mine and its and mine != its)


def draft_of(
    model: Path, facts: ModelFacts, drafts: Mapping[Path, ModelFacts], chats: Mapping[Path, ModelFacts]
) -> Path | None:
    """The draft of a model among those in its folder: with the same vocabulary, and smaller."""
    beside = [other for other in chats if other.parent == model.parent]
    fitting = []
    for path, each in drafts.items():
        if path.parent != model.parent or not may_draft(each, facts):
            continue
        base = _base(path, _DRAFT_WORDS)
        named_for_other = any(_begins_alike(base, other) for other in beside)
        if _begins_alike(base, model) or (not named_for_other and _is_one_model(beside)):
            fitting.append(path)
    return min(fitting, key=lambda path: (-_common(path, model), path), default=None)


def projector_base(path: Path) -> tuple[str, ...]:
    """What a projector's name says about its model; empty for names such as `mmproj-F16`."""
    return _base(path, _PROJECTOR_WORDS)


def vocabulary(facts: ModelFacts) -> int:
    """The number of tokens that a model knows; 0 if its header does not say."""
    for name, _, shape in tensors(facts):
        if name == "token_embd.weight" and len(shape) == 2:
            return int(shape[-1])
    return 0


def _may_serve(
    path: Path, projector: ModelFacts, model: Path, facts: ModelFacts, siblings: Iterable[Path],
    chats: Mapping[Path, ModelFacts],
) -> bool:  # fmt: skip
    """Whether a projector that is not named for any model beside it fits this one: there is no other, or its size fits."""
    siblings = list(siblings)
    if any(_is_named_for(projector_base(path), each, chats[each], projector) for each in siblings):
        return False
    width = _width(projector)
    if _is_one_model(siblings):
        return not projector_base(path) or width in (0, facts.embedding_length)
    others = [each for each in siblings if chats[each].embedding_length == width]
    return bool(width) and {_base(each, ()) for each in others} == {_base(model, ())}


def _is_named_for(base: tuple[str, ...], model: Path, facts: ModelFacts, projector: ModelFacts) -> bool:
    if base:
        return base == _base(model, ())
    names = {str(projector.metadata.get(key) or "").casefold() for key in ("general.name", "general.basename")} - {""}
    return bool(names) and not names.isdisjoint(
        {str(facts.metadata.get(key) or "").casefold() for key in ("general.name", "general.basename")} - {""}
    )


def _width(projector: ModelFacts) -> int:
    """The length of the embeddings that a projector makes; 0 if its header does not say."""
    for kind in ("vision", "audio"):
        value = projector.metadata.get(f"clip.{kind}.projection_dim")
        if isinstance(value, int):
            return value
    return 0


def _rank(facts: ModelFacts) -> int:
    return _PREFERRED.index(facts.quantization) if facts.quantization in _PREFERRED else len(_PREFERRED)


def _words(path: PurePath) -> frozenset[str]:
    return frozenset(_BREAK.split(model_stem(path).lower()))


def _base(path: Path, without: Iterable[str]) -> tuple[str, ...]:
    """The words of a name that say which model it is."""
    words = [word for word in _BREAK.split(model_stem(path).lower()) if word and word not in frozenset(without)]
    while words and _STORAGE.fullmatch(words[-1]):
        words.pop()
    return tuple(words)


def _common(path: Path, model: Path) -> int:
    return len(set(_base(path, _DRAFT_WORDS)) & set(_base(model, ())))


def _begins_alike(base: tuple[str, ...], model: Path) -> bool:
    """Whether a draft's name begins with the model's, or the other way round."""
    own = _base(model, ())
    length = min(len(base), len(own))
    return length > 0 and base[:length] == own[:length]


def _is_one_model(files: Iterable[Path]) -> bool:
    """Whether these are one model, perhaps stored in several ways."""
    return len({_base(path, ()) for path in files}) == 1
