"""How a model is made to fit: context, cache, layers and requests at a time."""

from __future__ import annotations

import msgspec
import pytest

from hostler.profiles.schema import ModelFacts
from hostler.supervisor.memory import GIB
from hostler.supervisor.model_fit import CPU_CONTEXT, EMBEDDING_CONTEXT, ModelFit, Room, fit_folder, fit_model, room_of

#: A model of 8 billion weights: 4.6 GiB, 36 layers, 144 KiB of cache for each token.
FACTS = ModelFacts(
    architecture="llama",
    parameters=8_000_000_000,
    training_context=131_072,
    embedding_length=4096,
    blocks=36,
    bytes=int(4.6 * GIB),
    kv_bytes_per_token=144 * 1024,
    metadata={"llama.vocab_size": 128_000, "llama.attention.key_length": 128, "llama.attention.value_length": 128},
)


def fit(gpu: float, memory: float = 16, *, fits_layers: bool = False, **others: int) -> ModelFit:
    """The choice for a machine with so many GiB free on a GPU, and so many beside it."""
    room = room_of(int(memory * GIB), [int(gpu * GIB)] if gpu else [], fits_layers=fits_layers)
    return fit_model(msgspec.structs.replace(FACTS, **others), room)


def test_a_large_gpu_takes_the_whole_context_and_several_requests() -> None:
    found = fit(180)
    assert (found.context, found.parallel, found.gpu_layers, found.args, found.fits) == (131_072, 4, 37, (), True)
    assert found.why == (
        f"all layers on the GPU; takes {found.need / GIB:.1f} GiB: all 131,072 tokens of context that it was trained on; "
        "4 requests at a time"
    )


def test_a_smaller_gpu_takes_less_context() -> None:
    found = fit(16)
    assert (found.context, found.gpu_layers, found.args) == (65_536, 37, ())
    assert "65,536 of the 131,072 tokens of context that it was trained on: more does not fit in memory" in found.why


def test_a_short_context_is_made_longer_by_a_smaller_cache() -> None:
    found = fit(8.5)
    assert found.args == ("-ctk", "q8_0", "-ctv", "q8_0", "-fa", "on")
    assert found.context == 32_768 and "in 8 bits" in found.why


def test_heads_that_do_not_divide_into_blocks_keep_their_cache() -> None:
    room = room_of(16 * GIB, [int(8.5 * GIB)])
    odd = msgspec.structs.replace(FACTS, metadata={"llama.vocab_size": 128_000, "llama.attention.key_length": 80})
    assert fit_model(odd, room).args == ()


def test_a_model_larger_than_the_gpu_is_split() -> None:
    found = fit(4)
    assert found.gpu_layers is not None and 0 < found.gpu_layers < 36
    assert found.fits and f"{found.gpu_layers} of 36 layers" in found.why


def test_an_engine_that_fits_layers_itself_is_left_to_do_so() -> None:
    assert fit(180, fits_layers=True).gpu_layers is None
    found = fit(4, fits_layers=True)
    assert found.gpu_layers is None and "the engine splits it" in found.why


def test_without_a_gpu_the_context_is_limited_and_requests_take_turns() -> None:
    found = fit(0, 64)
    assert (found.context, found.parallel, found.gpu_layers) == (CPU_CONTEXT, 1, None)


def test_what_fits_nowhere_is_said_to() -> None:
    found = fit(2, 2)
    assert not found.fits
    assert found.why.startswith("does not fit: needs ") and "use a smaller quantization" in found.why


def test_embeddings_need_no_long_context() -> None:
    found = fit_model(FACTS, Room(memory=16 * GIB, gpu=16 * GIB), embeddings=True)
    assert (found.context, found.args) == (EMBEDDING_CONTEXT, ())


def test_files_beside_the_model_take_their_part() -> None:
    room = room_of(16 * GIB, [16 * GIB])
    assert fit_model(FACTS, room, beside=5 * GIB).context < fit_model(FACTS, room).context


@pytest.mark.parametrize("gpu", [1, 3, 5, 6, 8, 12, 24, 48])
def test_a_choice_never_needs_more_than_there_is(gpu: int) -> None:
    room = room_of(16 * GIB, [gpu * GIB])
    found = fit_model(FACTS, room)
    assert found.need <= room.memory + room.gpu
    if found.gpu_layers == FACTS.blocks + 1:
        assert found.need <= room.gpu


def test_a_model_that_says_nothing_gets_a_modest_context() -> None:
    assert fit_model(ModelFacts(bytes=GIB), room_of(16 * GIB, [])).context == 8192


def test_some_memory_is_left_to_others() -> None:
    room = room_of(64 * GIB, [GIB, 24 * GIB, 0])
    assert room.memory < 63 * GIB and room.gpu < 24 * GIB
    assert room_of(GIB // 2, []).memory == 0


def test_a_folder_is_fitted_by_its_engine() -> None:
    found = fit_folder(FACTS, Room(memory=16 * GIB, gpu=8 * GIB), "vllm")
    assert (found.context, found.parallel, found.fits) == (32_768, 4, True)
    assert not fit_folder(FACTS, Room(memory=16 * GIB, gpu=4 * GIB), "vllm").fits
