"""What the command line shows: the running gateway's answers and the configuration, as rows."""

from __future__ import annotations

import datetime
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any

from hostler.gateway.keys import KeyRecord
from hostler.gateway.settings import Configuration, parse_address
from hostler.gateway.terminal.greeting import nearby
from hostler.profiles.sources import cached

#: How long the command line waits for the gateway, in seconds.
_ASK_S = 5.0


class NoGateway(Exception):
    """No gateway answers, or it refuses us; the message says where and what to do."""


def ask(configuration: Configuration, url: str | None) -> dict[str, Any]:
    """The running gateway's status. The key is taken from HOSTLER_API_KEY. Raises `NoGateway`."""
    where = address(configuration, url)
    key = os.environ.get("HOSTLER_API_KEY")
    try:
        request = urllib.request.Request(f"{where}/admin/status")
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_ASK_S) as answer:
            status: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (401, 403):
                raise NoGateway(
                    f"the gateway at {where} wants a key with the scope read: put it into HOSTLER_API_KEY"
                ) from error
            raise NoGateway(f"{where} answers with status {error.code}: is it a Hostler gateway?") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NoGateway(f"no gateway answers at {where}; start one with `hostler up`, or name it with --url") from error
    return status


def ask_quietly(configuration: Configuration, url: str | None) -> dict[str, Any] | None:
    """As `ask`, but `None` when no gateway answers and none was named."""
    try:
        return ask(configuration, url)
    except NoGateway:
        if url:
            raise
        return None


def models(configuration: Configuration, status: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Every configured model, and those that only the running gateway knows of."""
    running = {card["name"]: card for card in status["models"]} if status else {}
    rows = []
    for profile in configuration.profiles:
        card = running.pop(profile.name, None)
        path = cached(profile)
        rows.append(
            {
                "name": profile.name,
                "state": card["state"] if card else "unknown",
                "context": profile.context,
                "parallel": profile.parallel,
                "aliases": list(profile.aliases),
                "default": profile.default,
                "model": profile.model,
                "file": str(path) if path else None,
            }
        )
    for card in running.values():
        rows.append(
            {
                "name": card["name"],
                "state": card["state"],
                "context": card["context"],
                "parallel": card["parallel"],
                "aliases": card["aliases"],
                "default": False,
                "model": None,
                "file": None,
            }
        )
    return rows


def model_columns(rows: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The rows of `models` as cells."""
    return [
        (
            row["name"] + (" *" if row["default"] else ""),
            "-" if row["state"] == "unknown" else row["state"],
            str(row["context"]),
            str(row["parallel"]),
            ", ".join(row["aliases"]) or "-",
            row["file"] or (f"not fetched: {row['model']}" if row["model"] else "on its host"),
        )
        for row in rows
    ]


def host_columns(status: dict[str, Any]) -> list[tuple[str, ...]]:
    """The hosts of a status as cells."""
    return [
        (
            host["backend"],
            "answers" if host["reachable"] else "silent",
            str(host["serving"]),
            str(host["waiting"]),
        )
        for host in status["hosts"]
    ]


def status_columns(status: dict[str, Any]) -> list[tuple[str, ...]]:
    """The models of a status as cells."""
    return [
        (
            card["name"],
            card["state"],
            str(card["context"]),
            str(card["parallel"]),
            card["failure"] or card["description"] or "-",
        )
        for card in status["models"]
    ]


def key_columns(records: Iterable[KeyRecord]) -> list[tuple[str, ...]]:
    """Keys as cells."""
    return [
        (
            record.name,
            ", ".join(record.scopes),
            datetime.datetime.fromtimestamp(record.created, datetime.UTC).strftime("%Y-%m-%d"),
        )
        for record in records
    ]


def address(configuration: Configuration, url: str | None = None) -> str:
    """Where to ask the gateway: as told, else the first of `gateway.listen`."""
    if url:
        return (url if "://" in url else f"http://{url}").rstrip("/")
    return nearby(*parse_address(configuration.settings.gateway.listen[0]))
