"""The requests with which an engine lists its slots, writes one to a file, and reads one from a file."""

from __future__ import annotations

import msgspec

from hostler.supervisor.contract import EngineAddress
from hostler.supervisor.engine_client import EngineError, request_json


class SlotLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long an engine may take, in seconds, to list its slots, to save one, to restore one and to take one back.

    Saving and restoring may take longer for large files: their size divided by `bytes_per_s`.
    """

    list_s: float = 2.0
    rewind_s: float = 5.0
    save_s: float = 20.0
    restore_s: float = 20.0
    bytes_per_s: float = 100e6


class Slot(msgspec.Struct, frozen=True):
    """Neither number is there before the first request since the start; older engines do not give the tokens at all."""

    id: int
    is_processing: bool = False
    n_prompt_tokens: int | None = None
    id_task: int | None = None

    @property
    def used(self) -> bool:
        return self.n_prompt_tokens is not None or (self.id_task is not None and self.id_task >= 0)


class WrittenSlot(msgspec.Struct, frozen=True):
    """The tokens and the bytes that the engine says it has written."""

    n_saved: int
    n_written: int


class _ReadSlot(msgspec.Struct, frozen=True):
    n_restored: int


class _FileName(msgspec.Struct, frozen=True):
    filename: str


class _ErasedSlot(msgspec.Struct, frozen=True):
    n_erased: int


async def list_slots(address: EngineAddress, limits: SlotLimits) -> list[Slot]:
    """The slots of an engine. Raises `EngineError`."""
    return await request_json(address, "GET", "/slots", list[Slot], timeout_s=limits.list_s)


async def write_slot(address: EngineAddress, slot: int, file: str, limits: SlotLimits, *, expected: int) -> WrittenSlot:
    """Have the engine write a slot of about `expected` bytes to a file of its folder. Raises `EngineError`."""
    path, limit_s = f"/slots/{slot}?action=save", limits.save_s + expected / limits.bytes_per_s
    return await request_json(address, "POST", path, WrittenSlot, body=_FileName(file), timeout_s=limit_s)


async def read_slot(
    address: EngineAddress, slot: int, file: str, limits: SlotLimits, *, tokens: int, size: int
) -> None:
    """Have the engine read a slot of so many tokens and bytes. Raises `EngineError`, also if it has read others: they are
    erased then, since answers would depend on them. An engine that does not do so must not be used: the error has no status.
    """
    path, limit_s = f"/slots/{slot}?action=restore", limits.restore_s + size / limits.bytes_per_s
    read = await request_json(address, "POST", path, _ReadSlot, body=_FileName(file), timeout_s=limit_s)
    if read.n_restored != tokens:
        erase = f"/slots/{slot}?action=erase"
        try:
            await request_json(address, "POST", erase, _ErasedSlot, timeout_s=limits.list_s)
        except EngineError as error:
            raise EngineError(f"{read.n_restored} of {tokens} tokens were restored, and not erased: {error}") from error
        raise EngineError(f"{read.n_restored} of {tokens} tokens were restored", 200)
