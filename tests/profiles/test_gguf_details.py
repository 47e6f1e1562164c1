"""What a model's file says of its tensors, and of putting words between others."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hostler.profiles.gguf import read_facts, tensors
from hostler.profiles.gguf_header import MAX_TOLD_TENSORS
from hostler.profiles.schema import ModelFacts


def test_tensors_are_told_by_name_type_and_shape_over_a_wire_too(real_model: Path) -> None:
    facts = msgspec.json.decode(msgspec.json.encode(read_facts(real_model)), type=ModelFacts)
    told = tensors(facts)
    assert len(told) == 272 and told[0] == ("token_embd.weight", "Q8_0", [576, 49152])
    assert {kind for _, kind, _ in told} <= {"F32", "Q8_0", "Q4_1", "Q4_0"}
    assert len(facts.tensors) < 4096


def test_of_a_file_with_too_many_tensors_none_is_told(gguf: Any, tmp_path: Path) -> None:
    file = tmp_path / "many.gguf"
    many = [(f"blk.{number}.w", (1,), gguf.F32) for number in range(MAX_TOLD_TENSORS + 1)]
    file.write_bytes(gguf.bytes([("general.architecture", gguf.STR, "llama")], many))
    facts = read_facts(file)
    assert facts.parameters == len(many) and tensors(facts) == []


@pytest.mark.parametrize(
    ("keys", "able"),
    [
        (("fim_pre_token_id", "fim_suf_token_id"), True),
        (("prefix_token_id", "suffix_token_id"), True),
        (("fim_pre_token_id",), False),
        ((), False),
    ],
)
def test_a_model_with_words_for_it_can_insert(gguf: Any, tmp_path: Path, keys: tuple[str, ...], able: bool) -> None:
    file = tmp_path / "m.gguf"
    named = [(f"tokenizer.ggml.{key}", gguf.U32, 7) for key in keys]
    file.write_bytes(gguf.bytes([("general.architecture", gguf.STR, "qwen2"), *named]))
    assert ("insert" in read_facts(file).capabilities) is able


def test_what_is_packed_wrongly_is_nothing() -> None:
    assert tensors(ModelFacts()) == []
    assert tensors(ModelFacts(tensors=b"not packed")) == []
    assert tensors(ModelFacts(tensors=zlib.compress(b"[" * 100))) == []
