"""Carries out a discovery against documents, without any network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from hostler.adapters.remote_models import Discovery, ModelReport, Query, QueryAnswer


def answered(discovery: Discovery, documents: Mapping[str, Any]) -> tuple[ModelReport, list[str]]:
    """The discovery's result and the paths that it asked for. Documents are JSON by path, statuses as numbers."""
    asked: list[str] = []

    def answer(query: Query) -> QueryAnswer:
        path = query.path.partition("?")[0]
        asked.append(query.path)
        document = documents.get(query.path, documents.get(path, 404))
        if path == "/api/show" and isinstance(document, Mapping):
            document = document.get(msgspec.json.decode(query.body)["model"], 404)
        if isinstance(document, int):
            return QueryAnswer(status=document)
        if isinstance(document, str):
            return QueryAnswer(problem=document)
        return QueryAnswer(status=200, body=document if isinstance(document, bytes) else msgspec.json.encode(document))

    try:
        queries = next(discovery)
        while True:
            queries = discovery.send(tuple(map(answer, queries)))
    except StopIteration as end:
        return end.value, asked
