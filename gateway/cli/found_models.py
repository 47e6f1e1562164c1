"""The models that `hostler up` found in folders: one table of what was chosen and why, and `--save`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import RenderableType

from hostler.gateway.auth import keys as key_file
from hostler.gateway.auth.keys import KeyFileError
from hostler.gateway.cli.formatting import Column, format_bytes, make_console, make_table, plural, print_parts
from hostler.gateway.config import ConfigError, Configuration, Overrides, read
from hostler.gateway.context import ALL_SCOPES
from hostler.gateway.model_finder import Findings, FoundProfile
from hostler.profiles.profile_edits import add_profile, write_sections
from hostler.profiles.schema import Profile
from hostler.profiles.yaml_config import DocumentError

#: What `--save` writes where there is no configuration file.
SAVED_FILE: Final = Path("hostler.yaml")
#: What the columns of figures mean.
_LEGEND: Final = (
    "CONTEXT: tokens of a prompt and its answer together. SLOTS: requests at a time, each with that context."
)
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


def present_models(configuration: Configuration, findings: Findings, *, save: bool, places: Sequence[object]) -> None:
    """Print what was found and chosen; with `save`, write it to the configuration file.

    Raises `ConfigError` if there are no models although `places` were named, and if nothing can be saved.
    """
    served = {profile.name: profile for profile in configuration.profiles}
    if places and not any(each.name in served for each in findings.profiles) and not served:
        reasons = [f"{each.path}: {each.reason}" for each in findings.left_out]
        named = ", ".join(map(str, places))
        raise ConfigError(f"no models were found in {named}; models are GGUF files", *reasons)
    print_parts(*_report(findings, served))
    if save:
        print_parts(_save(configuration, [each for each in findings.profiles if each.name in served]), "")


def _report(findings: Findings, served: Mapping[str, Profile]) -> Iterator[RenderableType]:
    yield from _hardware(findings)
    rows = [_row(each) for each in findings.profiles if each.name in served]
    if rows:
        yield make_table(_COLUMNS, rows, make_console().width)
        yield _LEGEND
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
        else:
            _check_unchanged(path, overrides)
        known = {profile.name for profile in read(path).profiles}
        new = [each for each in found if each.name not in known]
        for each in new:
            add_profile(path, each.name, each.entry)
        saved = read(path)
    except (DocumentError, KeyFileError) as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    wanted = {profile.name: profile for profile in configuration.profiles}
    if {profile.name: profile for profile in saved.profiles} != wanted:
        raise ConfigError(f"{path}: was written, but gives other profiles; edit it by hand")
    return (
        f"saved {plural(len(new), 'profile')} in {path}" if new or not found else f"{path} has these profiles already"
    )


def _check_unchanged(path: Path, overrides: Overrides) -> None:
    """Raises `ConfigError` if the command line says something else of the gateway than the file, which exists."""
    if overrides.listen is None and overrides.key is None:
        return
    gateway = read(path).settings.gateway
    hashes = {key_file.digest(each) for each in gateway.api_keys}
    if gateway.api_keys_file is not None:
        hashes |= {each.hash for each in key_file.read(Path(gateway.api_keys_file))}
    if overrides.listen is not None and gateway.listen != (overrides.listen,):
        raise ConfigError(f"{path}: --listen is not added to a file that exists; set gateway.listen there")
    if overrides.key is not None and key_file.digest(overrides.key) not in hashes:
        raise ConfigError(f"{path}: --key is not added to a file that exists; use `hostler keys add`")


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
