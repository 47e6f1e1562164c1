"""Facts about models from their GGUF files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes.gguf_files import ARR, I32, LLAMA, STR, TEMPLATE, TENSORS, U32

from hostler.profiles.gguf import FactsCache, GGUFError, digest, read_facts, tensors
from hostler.profiles.gguf_header import MAX_LISTED_TENSORS
from hostler.profiles.schema import ModelFacts, Profile


def llama(**changed: tuple[int, Any]) -> list[tuple[str, int, Any]]:
    """`LLAMA` with keys of its own changed, added, or with `None` left out."""
    keys = {name: (kind, value) for name, kind, value in LLAMA}
    keys |= {"llama." + name.replace("__", "."): value for name, value in changed.items()}
    return [(name, *value) for name, value in keys.items() if value is not None]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_reads_every_version(tmp_path: Path, gguf_of_version: Callable[[int], Any], version: int) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_of_version(version).bytes(LLAMA, TENSORS))
    facts = read_facts(path)
    assert (facts.architecture, facts.name, facts.quantization) == ("llama", "Tiny", "Q4_K_M")
    assert (facts.parameters, facts.training_context, facts.embedding_length, facts.blocks) == (6784, 2048, 64, 4)
    assert facts.capabilities == ("completion", "tools", "thinking")
    assert facts.chat_template == TEMPLATE
    assert facts.kv_bytes_per_token == 4 * 2 * (8 + 8) * 2
    assert facts.bytes == path.stat().st_size
    assert facts.metadata["tokenizer.ggml.tokens"] is None
    assert facts.metadata["tokenizer.ggml.add_bos_token"] is True


@pytest.mark.parametrize(
    ("template", "keys", "capabilities"),
    [
        ("plain", {}, ("completion",)),
        ("{% for t in tools %}", {}, ("completion", "tools")),
        ("tool_call", {}, ("completion", "tools")),
        ("<think> only", {}, ("completion",)),
        ("content.split('</think>')[-1]", {}, ("completion", "thinking")),
        ("", {"pooling_type": (U32, 1)}, ("embedding",)),
        ("", {"vision__block_count": (U32, 1), "audio__block_count": (U32, 1)}, ("completion", "vision", "audio")),
    ],
)
def test_derives_capabilities(
    write_gguf: Callable[..., Path], template: str, keys: dict[str, Any], capabilities: tuple[str, ...]
) -> None:
    fields = [field for field in llama(**keys) if field[0] != "tokenizer.chat_template"]
    fields.append(("tokenizer.chat_template", STR, template))
    assert read_facts(write_gguf(fields)).capabilities == capabilities


@pytest.mark.parametrize(
    ("keys", "per_token"),
    [
        ({}, 4 * 2 * 16 * 2),
        ({"attention__head_count_kv": None}, 4 * 8 * 16 * 2),
        ({"attention__key_length": (U32, 32), "attention__value_length": (U32, 16)}, 4 * 2 * 48 * 2),
        ({"attention__head_count_kv": (ARR, (I32, [0, 2, 0, 4]))}, 6 * 16 * 2),
        ({"attention__head_count": (ARR, (U32, [8, 8, 8, 8]))}, 4 * 2 * 16 * 2),
        ({"attention__head_count": (U32, 0), "attention__head_count_kv": (U32, 0)}, 0),
        ({"block_count": (U32, 2**32 - 1)}, 4096 * 2 * 16 * 2),
    ],
)
def test_computes_the_cache_size_per_token(
    write_gguf: Callable[..., Path], keys: dict[str, Any], per_token: int
) -> None:
    assert read_facts(write_gguf(llama(**keys))).kv_bytes_per_token == per_token


def test_detects_recurrent_models_and_sliding_windows(write_gguf: Callable[..., Path]) -> None:
    plain = read_facts(write_gguf())
    assert (plain.sliding_window, plain.recurrent) == (0, False)
    assert read_facts(write_gguf(llama(attention__sliding_window=(U32, 512)))).sliding_window == 512
    assert read_facts(write_gguf(llama(ssm__state_size=(U32, 16)))).recurrent
    assert read_facts(write_gguf([("general.architecture", STR, "rwkv7")])).recurrent
    assert read_facts(write_gguf(llama(shortconv__l_cache=(U32, 3)))).recurrent


def test_an_unknown_file_type_is_unknown(write_gguf: Callable[..., Path]) -> None:
    assert read_facts(write_gguf([("general.file_type", U32, 999)])).quantization == "unknown"
    assert read_facts(write_gguf([("general.file_type", STR, "2")])).quantization == "unknown"


def test_adds_up_the_shards_of_a_split_model(write_gguf: Callable[..., Path]) -> None:
    first = write_gguf([*LLAMA, ("split.count", U32, 2)], TENSORS, "big-00001-of-00002.gguf")
    with pytest.raises(GGUFError, match=r"big-00002-of-00002\.gguf cannot be read") as caught:
        read_facts(first)
    assert caught.value.kind == "file_missing"
    second = write_gguf([("split.no", U32, 1)], [("more.weight", (10,), 0)], "big-00002-of-00002.gguf")
    facts = read_facts(second)
    assert facts.parameters == 6784 + 10
    assert facts.bytes == first.stat().st_size + second.stat().st_size
    assert facts.name == "Tiny"
    assert not [key for key in facts.metadata if key.startswith("split.")]


HEAD = b"GGUF" + struct.pack("<I", 3)
HUGE = 2**63


def test_the_cache_reads_only_changed_files_again(write_gguf: Callable[..., Path]) -> None:
    cache, path = FactsCache(), write_gguf()
    facts = cache.read(path)
    assert cache.read(path) is facts
    write_gguf([("general.name", STR, "Other")])
    assert cache.read(path).name == "Other"
    path.unlink()
    with pytest.raises(GGUFError):
        cache.read(path)


def test_digests_are_distinct_per_profile_and_stable(write_gguf: Callable[..., Path]) -> None:
    path = write_gguf()
    profiles = [
        Profile(name="a", model=str(path)),
        Profile(name="b", model=str(path)),
        Profile(name="a", model=str(path), context=1),
        Profile(name="a", model=str(path), sha256="0" * 64),
    ]
    digests = [digest(profile, path) for profile in profiles]
    assert len(set(digests)) == 4
    assert all(len(text) == 64 and int(text, 16) >= 0 for text in digests)
    assert digests == [digest(profile, path) for profile in profiles]
    assert digest(profiles[3], None) == digests[3]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert digest(profiles[0], path) != digests[0]


def test_reads_a_real_model_as_ollama_does(real_model: Path) -> None:
    facts = read_facts(real_model)
    assert (facts.parameters, facts.quantization, facts.architecture) == (134515008, "Q4_1", "llama")
    assert (facts.training_context, facts.embedding_length, facts.blocks) == (8192, 576, 30)
    assert facts.capabilities == ("completion",)
    assert facts.metadata["llama.attention.layer_norm_rms_epsilon"] == 1e-05
    assert facts.kv_bytes_per_token == 23040


def test_lists_tensors_by_name_type_and_shape_after_json_too(real_model: Path) -> None:
    facts = msgspec.json.decode(msgspec.json.encode(read_facts(real_model)), type=ModelFacts)
    listed = tensors(facts)
    assert len(listed) == 272 and listed[0] == ("token_embd.weight", "Q8_0", [576, 49152])
    assert {kind for _, kind, _ in listed} <= {"F32", "Q8_0", "Q4_1", "Q4_0"}
    assert len(facts.tensors) < 4096


def test_too_many_tensors_are_not_listed(gguf: Any, tmp_path: Path) -> None:
    file = tmp_path / "many.gguf"
    many = [(f"blk.{number}.w", (1,), gguf.F32) for number in range(MAX_LISTED_TENSORS + 1)]
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
def test_a_model_with_infill_tokens_can_insert(gguf: Any, tmp_path: Path, keys: tuple[str, ...], able: bool) -> None:
    file = tmp_path / "m.gguf"
    named = [(f"tokenizer.ggml.{key}", gguf.U32, 7) for key in keys]
    file.write_bytes(gguf.bytes([("general.architecture", gguf.STR, "qwen2"), *named]))
    assert ("insert" in read_facts(file).capabilities) is able


def test_invalid_packed_tensors_are_ignored() -> None:
    assert tensors(ModelFacts()) == []
    assert tensors(ModelFacts(tensors=b"not packed")) == []
    assert tensors(ModelFacts(tensors=zlib.compress(b"[" * 100))) == []
