"""What a model's file says, and that no file can do harm."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hostler.profiles.gguf import FactsCache, GGUFError, digest, read_facts
from hostler.profiles.gguf_header import MAX_KEYS, MAX_TENSORS
from hostler.profiles.schema import Profile

STR, ARR, U32, I32, F32, BOOL, F64, U64 = 8, 9, 4, 5, 6, 7, 12, 10
TEMPLATE = "{% if tools %}<tool_call>{% endif %}<think>{{ content }}</think>"
LLAMA: list[tuple[str, int, Any]] = [
    ("general.architecture", STR, "llama"),
    ("general.name", STR, "Tiny"),
    ("general.file_type", U32, 15),
    ("llama.context_length", U32, 2048),
    ("llama.embedding_length", U32, 64),
    ("llama.block_count", U32, 4),
    ("llama.attention.head_count", U32, 8),
    ("llama.attention.head_count_kv", U32, 2),
    ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
    ("llama.rope.freq_base", F32, 10000.0),
    ("tokenizer.ggml.add_bos_token", BOOL, 1),
    ("tokenizer.ggml.tokens", ARR, (STR, ["a", "bc", "ä"] * 50)),
    ("tokenizer.ggml.scores", ARR, (F32, [0.5] * 9000)),
    ("tokenizer.chat_template", STR, TEMPLATE),
]
TENSORS = [("token_embd.weight", (64, 100), 0), ("output.weight", (64, 3, 2), 0)]


@pytest.fixture
def made(tmp_path: Path, gguf: Any) -> Callable[..., Path]:
    def make(keys: Any = LLAMA, tensors: Any = TENSORS, name: str = "m.gguf", **more: Any) -> Path:
        path = tmp_path / name
        path.write_bytes(gguf.bytes(keys, tensors, **more))
        return path

    return make


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


def test_numbers_print_as_people_wrote_them(made: Callable[..., Path]) -> None:
    floats = [1e-05, 0.1, 1e-06, 500000.0, 3.4028234663852886e38, 0.044194173, 1.5, float("nan"), float("inf"), -0.0]
    facts = read_facts(made([(f"x.{index}", F32, value) for index, value in enumerate(floats)], []))
    assert [str(value) for value in facts.metadata.values()] == [
        "1e-05", "0.1", "1e-06", "500000.0", "3.4028235e+38", "0.044194173", "1.5", "None", "None", "-0.0",
    ]  # fmt: skip


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
@example(99999997952.0)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_short_number_is_still_the_same_number(tmp_path: Path, gguf: Any, number: float) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf.bytes([("x", F32, number)]))
    short = read_facts(path).metadata["x"]
    assert isinstance(short, float)
    assert struct.pack("<f", short) == struct.pack("<f", number)
    assert digits_of(short) <= digits_of(number)


def digits_of(number: float) -> int:
    """How many digits a number has, without the zeros that only say how large it is."""
    return len(Decimal(repr(number)).normalize().as_tuple().digits)


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
    made: Callable[..., Path], template: str, keys: dict[str, Any], capabilities: tuple[str, ...]
) -> None:
    fields = [field for field in llama(**keys) if field[0] != "tokenizer.chat_template"]
    fields.append(("tokenizer.chat_template", STR, template))
    assert read_facts(made(fields)).capabilities == capabilities


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
def test_says_what_a_token_costs(made: Callable[..., Path], keys: dict[str, Any], per_token: int) -> None:
    assert read_facts(made(llama(**keys))).kv_bytes_per_token == per_token


def test_knows_models_whose_conversations_cannot_be_kept(made: Callable[..., Path]) -> None:
    plain = read_facts(made())
    assert (plain.sliding_window, plain.recurrent) == (0, False)
    assert read_facts(made(llama(attention__sliding_window=(U32, 512)))).sliding_window == 512
    assert read_facts(made(llama(ssm__state_size=(U32, 16)))).recurrent
    assert read_facts(made([("general.architecture", STR, "rwkv7")])).recurrent
    assert read_facts(made(llama(shortconv__l_cache=(U32, 3)))).recurrent


def test_an_unknown_file_type_is_unknown(made: Callable[..., Path]) -> None:
    assert read_facts(made([("general.file_type", U32, 999)])).quantization == "unknown"
    assert read_facts(made([("general.file_type", STR, "2")])).quantization == "unknown"


def test_sums_the_parts_of_a_split_model(made: Callable[..., Path]) -> None:
    first = made([*LLAMA, ("split.count", U32, 2)], TENSORS, "big-00001-of-00002.gguf")
    with pytest.raises(GGUFError, match=r"big-00002-of-00002\.gguf cannot be read") as caught:
        read_facts(first)
    assert caught.value.kind == "file_missing"
    second = made([("split.no", U32, 1)], [("more.weight", (10,), 0)], "big-00002-of-00002.gguf")
    facts = read_facts(second)
    assert facts.parameters == 6784 + 10
    assert facts.bytes == first.stat().st_size + second.stat().st_size
    assert facts.name == "Tiny"
    assert not [key for key in facts.metadata if key.startswith("split.")]


def refusal(path: Path, raw: bytes | None = None) -> tuple[str, str]:
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(GGUFError) as caught:
        read_facts(path)
    assert str(path) in str(caught.value)
    return caught.value.kind, str(caught.value).removeprefix(f"{path} ")


def test_refuses_what_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    assert refusal(path) == ("file_missing", "cannot be read: No such file or directory")
    assert refusal(tmp_path)[0] == "file_missing"
    assert refusal(path, b"") == ("not_gguf", "is not a GGUF file")
    assert refusal(path, b"<!DOCTYPE html>")[0] == "not_gguf"
    assert refusal(path, b"GGUF" + struct.pack(">I", 3) + bytes(16))[1].startswith("is a big-endian GGUF")
    assert refusal(path, b"GGUF" + struct.pack("<I", 4) + bytes(16))[1] == "is GGUF version 4; known are 1 to 3"


def test_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    assert refusal(tmp_path / "m.gguf") == ("file_missing", "is not a file")


HEAD = b"GGUF" + struct.pack("<I", 3)
HUGE = 2**63


@pytest.mark.parametrize(
    "raw",
    [
        HEAD,
        HEAD + struct.pack("<QQ", MAX_TENSORS + 1, 0),
        HEAD + struct.pack("<QQ", 0, MAX_KEYS + 1),
        HEAD + struct.pack("<QQ", HUGE, HUGE),
        HEAD + struct.pack("<QQQ", 0, 1, HUGE),
        HEAD + struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IQ", STR, HUGE) + bytes(64),
        HEAD + struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<I", 99) + bytes(64),
        HEAD + struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IIQ", ARR, 99, 1) + bytes(64),
        HEAD + struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IIQ", ARR, U64, HUGE) + bytes(64),
        HEAD + struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IIQ", ARR, STR, HUGE) + bytes(64),
        HEAD + struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<I", ARR) + struct.pack("<IQ", ARR, 1) * 5000,
        HEAD + struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<IIQ", ARR, ARR, 3_999_999) + bytes(1000),
        HEAD
        + (struct.pack("<Q", 0) + struct.pack("<Q", 2))
        + (struct.pack("<Q", 1) + b"k" + struct.pack("<IB", 7, 1)) * 2,
        HEAD + struct.pack("<QQQ", 1, 0, 1) + b"t" + struct.pack("<I", 99) + bytes(64),
        HEAD + struct.pack("<QQQ", 1, 0, 1) + b"t" + struct.pack("<IQQQIQ", 3, HUGE, HUGE, HUGE, 0, 0) + bytes(64),
        HEAD + struct.pack("<QQQ", 1, 0, 1) + b"t" + struct.pack("<IQIQ", 1, 1000, 0, 0) + bytes(64),
        HEAD + struct.pack("<QQQ", 0, 1, 17) + b"general.alignment" + struct.pack("<II", U32, 0) + bytes(64),
    ],
)
def test_refuses_what_is_damaged(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    tracemalloc.start()
    begun = time.process_time()
    kind, _ = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kind == "model_damaged"
    assert time.process_time() - begun < 2
    assert peak < 8 * 1024 * 1024


def test_a_download_that_broke_off_is_told(made: Callable[..., Path]) -> None:
    path = made()
    path.write_bytes(path.read_bytes()[:-2000])
    assert refusal(path)[1].endswith("the download may be incomplete")


def test_a_hole_of_a_terabyte_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(HEAD + struct.pack("<QQQ", 0, 3, 1) + b"k" + struct.pack("<IIQ", ARR, STR, 4_000_000))
        file.truncate(1 << 40)
    begun = time.process_time()
    assert refusal(path) == ("model_damaged", "has the key '' twice")
    assert time.process_time() - begun < 10


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_the_file_holds_the_answer_is_facts_or_a_reason(
    tmp_path: Path, gguf: Any, data: st.DataObject
) -> None:
    raw = bytearray(gguf.bytes(LLAMA, TENSORS, data=64))
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, 700))
        raw[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
    path = tmp_path / "fuzzed.gguf"
    path.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    try:
        read_facts(path)
    except GGUFError as error:
        assert error.kind in ("not_gguf", "model_damaged")


def test_the_cache_reads_again_only_what_changed(made: Callable[..., Path]) -> None:
    cache, path = FactsCache(), made()
    assert cache.peek(path) is None
    facts = cache.read(path)
    assert cache.read(path) is facts
    assert cache.peek(path) is facts
    made([("general.name", STR, "Other")])
    assert cache.peek(path) is None
    assert cache.read(path).name == "Other"
    path.unlink()
    assert cache.peek(path) is None
    with pytest.raises(GGUFError):
        cache.read(path)


def test_digests_are_distinct_per_profile_and_stable(made: Callable[..., Path]) -> None:
    path = made()
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
