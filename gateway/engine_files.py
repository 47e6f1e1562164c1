"""What is wrong with programs and files that engines are started with, as far as it shows without starting one."""

from __future__ import annotations

from pathlib import Path

from hostler.profiles.file_reading import expanded_path

#: Arguments of llama-server that name a file in its own format, and other files.
_GGUF_ARGUMENTS = frozenset(
    (
        *("--mmproj", "-mm", "--lora", "--control-vector", "--model-draft", "-md"),
        *("--model-vocoder", "-mv"),
    )
)
_FILE_ARGUMENTS = _GGUF_ARGUMENTS | {"--chat-template-file", "--grammar-file", "--json-schema-file", "-jf"}
#: Bytes of a program that show whether it is a text.
_PROGRAM_START = 512


def argument_mistake(name: str, value: str) -> str | None:
    """What is wrong with the file that an argument names; `None` if nothing is, or if it names none. Blocks."""
    return file_mistake(value, gguf=name in _GGUF_ARGUMENTS) if name in _FILE_ARGUMENTS else None


def file_mistake(file: str, *, gguf: bool) -> str | None:
    """What is wrong with a file that an engine reads, which must be a `gguf` file; `None` if nothing is. Blocks."""
    try:
        path = expanded_path(file)
        if path.is_dir():
            return "is a folder"
        if path.exists() and not path.is_file():
            return "is not a regular file"
        with path.open("rb") as opened:
            start = opened.read(4)
    except (OSError, ValueError):
        return "cannot be read"
    return "is not a GGUF file" if gguf and start != b"GGUF" else None


def program_mistake(program: str) -> str | None:
    """Why the system cannot run an executable file: it is a text that names no interpreter. Blocks."""
    try:
        if Path(program).exists() and not Path(program).is_file():
            return f"{program} is not a regular file"
        with Path(program).open("rb") as file:
            start = file.read(_PROGRAM_START)
    except OSError:
        return None  # may be run all the same
    is_text = start.replace(b"\n", b"").replace(b"\t", b"").replace(b"\r", b"").decode("latin-1").isprintable()
    return f"{program} is a text without a #! line, which is no program" if is_text and start[:2] != b"#!" else None
