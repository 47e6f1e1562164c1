"""The models that `hostler up` found in folders: one table of what was chosen and why, and `--save`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from rich.console import RenderableType

from hostler.gateway.auth import keys as key_file
from hostler.gateway.auth.keys import KeyFileError
from hostler.gateway.cli.formatting import Column, format_bytes, make_console, make_table, plural, print_parts
from hostler.gateway.config import ConfigError, Configuration, read
from hostler.gateway.context import ALL_SCOPES
from hostler.gateway.model_finder import Findings, FoundProfile
from hostler.profiles.profile_edits import add_profile, write_sections
from hostler.profiles.schema import Profile
from hostler.profiles.yaml_config import DocumentError

#: What `--save` writes where there is no configuration file.
SAVED_FILE: Final = Path("hostler.yaml")
#: The key file that `--save` writes beside it.
_KEY_FILE: Final = "hostler.keys"

_COLUMNS: Final = (
    Column("MODEL", named=True),
    Column("FOR"),
    Column("SIZE", right=True),
    Column("CONTEXT", right=True),
    Column("SLOTS", right=True, drop=1),
    Column("WITH", drop=2),
    Column("WHY", wraps=True),
)


def present_models(configuration: Configuration, findings: Findings, *, save: bool, required: bool) -> None:
    """Print what was found and chosen; with `save`, write it to the configuration file.

    Raises `ConfigError` if nothing was found although models are `required`, and if nothing can be saved.
    """
    served = {profile.name: profile for profile in configuration.profiles}
    if required and not any(each.name in served for each in findings.profiles) and not served:
        reasons = [f"{each.path}: {each.reason}" for each in findings.left_out]
        raise ConfigError("no models were found; models are GGUF files", *reasons)
    print_parts(*_report(findings, served))
    if save:
        print_parts(_save(configuration, [each for each in findings.profiles if each.name in served]), "")


def _report(findings: Findings, served: Mapping[str, Profile]) -> Iterator[RenderableType]:
    yield from _hardware(findings)
    rows = [_row(each) for each in findings.profiles if each.name in served]
    if rows:
        yield make_table(_COLUMNS, rows, make_console().width)
    for each in findings.left_out:
        yield f"left out: {each.path} {each.reason}"
    for found in findings.profiles:
        if found.name not in served:
            yield f"left out: {found.model.path} is a profile of the configuration file already"
    yield ""


def _hardware(findings: Findings) -> Iterator[str]:
    engine = findings.engine
    if engine is None or not engine.program:
        return
    gpus = ", ".join(f"{each.name} {each.model} ({format_bytes(each.free)} free)" for each in engine.devices)
    yield f"engine: {engine.name}; GPUs: {gpus or 'none'}; memory: {format_bytes(findings.memory)} free"
    if findings.unused_gpus:
        yield f"not used: {', '.join(findings.unused_gpus)}; get a llama-server that is built for it (see docs/engines.md)"


def _row(found: FoundProfile) -> tuple[str, ...]:
    model, fit = found.model, found.fit
    beside = [name for name, path in (("mmproj", model.projector), ("draft", model.draft)) if path is not None]
    return (
        found.name,
        model.kind,
        format_bytes(model.size),
        str(fit.context),
        str(fit.parallel),
        ", ".join(beside),
        fit.why,
    )


def _save(configuration: Configuration, found: list[FoundProfile]) -> str:
    path, overrides = configuration.path, configuration.overrides
    try:
        if path is None:
            path = SAVED_FILE
            write_sections(path, {"gateway": gateway} if (gateway := _gateway_section(configuration, path)) else {})
        elif overrides.listen is not None or overrides.key is not None:
            raise ConfigError(f"{path}: --listen and --key are not added to a file that exists; edit it")
        for each in found:
            add_profile(path, each.name, each.entry)
        saved = read(path)
    except (DocumentError, KeyFileError) as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    wanted = {profile.name: profile for profile in configuration.profiles}
    if {profile.name: profile for profile in saved.profiles} != wanted:
        raise ConfigError(f"{path}: was written, but gives other profiles; edit it by hand")
    return f"saved {plural(len(found), 'profile')} in {path}"


def _gateway_section(configuration: Configuration, path: Path) -> dict[str, object]:
    """What the command line says of the gateway. A key is stored as a hash, in a file beside `path`."""
    overrides = configuration.overrides
    section: dict[str, object] = {}
    if overrides.listen is not None:
        section["listen"] = [overrides.listen]
    if overrides.key is not None:
        keys = path.absolute().with_name(_KEY_FILE)
        if not any(each.hash == key_file.digest(overrides.key) for each in key_file.read(keys)):
            key_file.add(keys, "command-line", ALL_SCOPES, key=overrides.key)
        section["api_keys_file"] = _KEY_FILE
    return section
