"""`hostler get`: search registries, show what fits this machine, download a model, and add its profile."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from hostler.gateway.cli.formatting import Column, format_bytes, print_table
from hostler.gateway.cli.options import ConfigOption, JsonOption, cannot_write, echo, fail, print_json
from hostler.gateway.cli.start_options import FAILED, INTERRUPTED, USAGE
from hostler.profiles.sources import SourceError

if TYPE_CHECKING:
    from hostler.gateway.config import Configuration
    from hostler.gateway.model_getter import GotModel, HubChoice, HubOffer, ModelGetter
    from hostler.profiles.hub import HubResult
    from hostler.profiles.hub_reference import HubReference

_RESULTS = (
    Column("REPOSITORY", named=True),
    Column("DOWNLOADS", right=True),
    Column("LIKES", right=True),
    Column("NOTE"),
)
_CHOICES = (
    Column("QUANTIZATION"),
    Column("SIZE", right=True),
    Column("FILES", right=True),
    Column("FITS"),
    Column("CONTEXT", right=True, drop=1),
    Column("NOTE", drop=2),
)

#: A licence is shown up to this line; `--json` has all of it.
_LICENCE_LINES = 12


def get(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Words to search for; or hf.co/org/repo:Q4_K_M, qwen3:8b (Ollama's registry), or a link to Hugging Face.",
        ),
    ] = None,
    hf: Annotated[
        str | None, typer.Option("-hf", "--hf-repo", metavar="REPO", help="A repository, spelled as for llama-server.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the profile. Default: from the file name.")
    ] = None,
    list_only: Annotated[
        bool, typer.Option("--list", help="Show what there is and what fits; download nothing.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search for a model, download it, and add its profile.

    Without a quantization it takes the usual one of those that fit this machine. The hub's address and token are those of
    HF_ENDPOINT and HF_TOKEN, or of `hf auth login`. An interrupted download is continued by the next one.
    """
    from hostler.gateway.cli.downloads import download
    from hostler.gateway.cli.options import read_configuration
    from hostler.gateway.model_getter import ModelGetter
    from hostler.profiles.hub_reference import parse_reference

    text = f"-hf {hf}" if hf else " ".join(words or ())
    if not text.strip():
        fail("name a model, or words to search for", USAGE)
    configuration = read_configuration(config)
    try:
        reference = parse_reference(text)
        getter = ModelGetter(configuration.settings.supervisor.engine, download)
        if reference is None:
            _show_results(text, getter.search(text), as_json=as_json)
        elif reference.registry == "hub":
            offer = getter.offer(reference)
            if list_only or not as_json:
                _show_offer(offer, as_json=as_json)
            if not list_only:
                _report(_add(configuration, getter.get_from_hub(offer, reference, name=name)), as_json=as_json)
        else:
            _from_registry(configuration, getter, reference, name, list_only=list_only, as_json=as_json)
    except SourceError as error:
        fail(str(error), FAILED)
    except KeyboardInterrupt:
        fail("interrupted; the next get continues the download", INTERRUPTED)


def _show_results(words: str, found: Iterable[HubResult], *, as_json: bool) -> None:
    results = list(found)
    if as_json:
        print_json([{"name": each.name, "downloads": each.downloads, "likes": each.likes} for each in results])
        return
    if not results:
        fail(f"no repository with GGUF files was found for {words!r}", FAILED)
    rows = [
        (each.name, str(each.downloads), str(each.likes), "gated" if each.gated else "private" if each.private else "")
        for each in results
    ]
    print_table(_RESULTS, rows)
    echo(f"`hostler get {results[0].name}` shows which of its files fit, and gets one of them")


def _show_offer(offer: HubOffer, *, as_json: bool) -> None:
    licence = offer.repository.license
    if as_json:
        print_json(
            [
                {
                    "quantization": each.model.quantization,
                    "size": each.model.size,
                    "files": [file.path for file in each.model.files],
                    "fits": each.fits,
                    "context": each.fit.context if each.fit.fits else None,
                    "chosen": each is offer.chosen,
                    "licenses": [licence] if licence else [],
                }
                for each in offer.choices
            ]
        )
        return
    rows = [
        (
            each.model.quantization,
            format_bytes(each.model.size),
            str(len(each.model.files)),
            each.fits,
            str(each.fit.context) if each.fit.fits else "",
            _note(offer, each),
        )
        for each in offer.choices
    ]
    print_table(_CHOICES, rows)
    if (projector := offer.repository.projector()) is not None:
        echo(f"with {projector.path} ({format_bytes(projector.size)}) for images or sound")
    if (draft := offer.repository.draft(offer.chosen.model)) is not None:
        echo(f"with {draft.path} ({format_bytes(draft.size)}), which drafts for it")
    if licence:
        echo(f"licence: {licence}")


def _note(offer: HubOffer, choice: HubChoice) -> str:
    """Whether it is chosen; and which file it is, where several are stored in the same way."""
    same = [each for each in offer.choices if each.model.quantization == choice.model.quantization]
    words = ["chosen"] if choice is offer.chosen else []
    return ", ".join([*words, *([choice.model.files[0].path] if len(same) > 1 else [])])


def _from_registry(
    configuration: Configuration, getter: ModelGetter, reference: HubReference, name: str | None, *, list_only: bool,
    as_json: bool,
) -> None:  # fmt: skip
    found = getter.read_registry(reference)
    if not as_json:
        echo(f"{reference.name}: {format_bytes(found.model.size)}")
        for text in found.licenses:
            lines = text.strip().splitlines()
            echo("licence: " + "\n  ".join(lines[:_LICENCE_LINES]))
            if len(lines) > _LICENCE_LINES:
                echo(f"  ... and {len(lines) - _LICENCE_LINES} more lines; `--json` shows all")
    elif list_only:
        print_json({"name": reference.name, "size": found.model.size, "licenses": list(found.licenses)})
    if not list_only:
        got = _add(configuration, getter.get_from_registry(found, reference, name=name))
        _report(got, as_json=as_json, licenses=found.licenses)


def _add(configuration: Configuration, got: GotModel) -> tuple[GotModel, Path]:
    """Add the profile to the configuration file, and what its registry says of it to the library; returns the file."""
    from hostler.gateway.config import library_file
    from hostler.profiles.library import save_model
    from hostler.profiles.profile_edits import add_profile
    from hostler.profiles.yaml_config import DocumentError

    existing = {profile.name: profile for profile in configuration.profiles} if not configuration.shipped else {}
    if got.name in existing and existing[got.name].model == got.entry.model:
        return got, configuration.path or Path("hostler.yaml")
    target = configuration.path or Path("hostler.yaml")
    try:
        add_profile(target, got.name, got.entry)
        if got.preset is not None and (got.preset.changes_requests or got.preset.license):
            library = library_file(configuration.settings.gateway.library, target)
            save_model(library, got.name, preset=got.preset, profile=None)
    except DocumentError as error:
        _not_added(got, error)
    except OSError as error:
        cannot_write(target, error)
    return got, target


def _not_added(got: GotModel, error: Exception) -> NoReturn:
    fail(f"{error}; the model is in {got.path}, choose another name with --name", FAILED)


def _report(added: tuple[GotModel, Path], *, as_json: bool, licenses: Iterable[str] = ()) -> None:
    got, target = added
    if as_json:
        projector, draft = (None if each is None else str(each) for each in (got.projector, got.draft))
        listed = {"licenses": list(licenses)} if licenses else {}
        fields = {"name": got.name, "model": got.entry.model, "file": str(got.path), "mmproj": projector}
        fields |= {"draft": draft}
        print_json({**fields, "context": got.fit.context, "profile": str(target), **listed})
        return
    echo(f"{got.name}: {got.path}")
    echo(f"added {got.name} to {target}: context {got.fit.context}; {got.fit.why}")
