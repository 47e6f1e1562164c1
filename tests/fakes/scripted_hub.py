"""A hub on loopback ports: its API, files behind a redirect to another host, and Ollama's registry; all as scripted."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_secret"


class ScriptedHub:
    """`files` are the files of repositories, by `org/repo/path`; `blobs` those of the registry, by digest.

    `refusals` are sent before anything else, `cuts` end that many transfers after so many bytes, and `gated` repositories
    need the token. The transfer of a file in `pauses` stops after so many bytes until `proceed` is set, and sets `paused`.
    `licenses` are those of repositories. `requests` are host, path, authorisation and range of each request.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.manifests: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.refusals: list[tuple[int, dict[str, str]]] = []
        self.cuts: list[int] = []
        self.gated: set[str] = set()
        self.pauses: dict[str, int] = {}
        self.paused = threading.Event()
        self.proceed = threading.Event()
        self.licenses: dict[str, str] = {}
        self.has_tree = True
        self.announced: dict[str, str] = {}
        self.requests: list[tuple[str, str, str | None, str | None]] = []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        #: The same server under another name, as hosts of large files are.
        self.cdn = f"http://localhost:{self.server.server_port}"

    def add(self, repository: str, path: str, content: bytes) -> str:
        """Add a file; returns its checksum."""
        self.files[f"{repository}/{path}"] = content
        return hashlib.sha256(content).hexdigest()

    def add_registry_model(self, name: str, tag: str, **layers: bytes) -> None:
        """Add a model of Ollama's registry with these layers: `model`, `license`, `params` and so on."""
        listed = []
        for kind, content in layers.items():
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            self.blobs[digest] = content
            media = f"application/vnd.ollama.image.{kind}"
            listed.append({"mediaType": media, "digest": digest, "size": len(content)})
        self.manifests[f"{name}/manifests/{tag}"] = {"schemaVersion": 2, "layers": listed}

    def paths(self) -> list[str]:
        return [path for _, path, _, _ in self.requests]

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host, wanted = self.headers.get("Host", ""), self.headers.get("Range")
                hub.requests.append((host, self.path, self.headers.get("Authorization"), wanted))
                if hub.refusals:
                    status, headers = hub.refusals.pop(0)
                    self.answer(status, headers, b"")
                    return
                parts = urlsplit(self.path)
                path = unquote(parts.path)
                if path == "/api/models":
                    self.search(parse_qs(parts.query)["search"][0])
                elif path.startswith("/api/models/"):
                    self.info(path.removeprefix("/api/models/"))
                elif path.startswith("/v2/"):
                    self.registry(path.removeprefix("/v2/"))
                elif path.startswith("/cdn/"):
                    name, body = next(each for each in hub.files.items() if _sha256(each[1]) == path[5:])
                    self.content(body, pause=hub.pauses.get(name))
                else:
                    self.resolve(path[1:])

            def search(self, words: str) -> None:
                names = dict.fromkeys("/".join(name.split("/")[:2]) for name in hub.files)
                found = [{"id": name, "downloads": 7, "likes": 1} for name in names if words.lower() in name.lower()]
                self.answer(200, {}, json.dumps(found).encode())

            def info(self, rest: str) -> None:
                repository = "/".join(rest.split("/")[:2])
                files = {
                    name[len(repository) + 1 :]: body
                    for name, body in hub.files.items()
                    if name.startswith(f"{repository}/")
                }
                if not files or ("/tree/" in rest and not hub.has_tree):
                    self.answer(404, {}, b'{"error": "not found"}')
                elif self.refused(repository):
                    pass
                elif "/tree/" in rest:
                    lfs = {name: {"oid": _sha256(body), "size": len(body)} for name, body in files.items()}
                    entries = [
                        {"type": "file", "path": name, "size": len(files[name]), "lfs": lfs[name]} for name in files
                    ]
                    self.answer(200, {}, json.dumps(entries).encode())
                else:
                    siblings = [
                        {"rfilename": name, "size": len(body), "lfs": {"sha256": _sha256(body), "size": len(body)}}
                        for name, body in files.items()
                    ]
                    tags = [f"license:{hub.licenses[repository]}"] if repository in hub.licenses else []
                    self.answer(200, {}, json.dumps({"id": repository, "siblings": siblings, "tags": tags}).encode())

            def resolve(self, path: str) -> None:
                repository, _, rest = path.partition("/resolve/")
                name = f"{repository}/{rest.partition('/')[2]}"
                if name not in hub.files:
                    self.answer(404, {}, b"")
                elif not self.refused(repository):
                    checksum = _sha256(hub.files[name])
                    etag = f'"{hub.announced.get(name, checksum)}"'
                    self.answer(302, {"Location": f"{hub.cdn}/cdn/{checksum}", "X-Linked-Etag": etag}, b"")

            def registry(self, rest: str) -> None:
                if rest in hub.manifests:
                    self.answer(200, {}, json.dumps(hub.manifests[rest]).encode())
                elif (digest := rest.rpartition("/")[2]) in hub.blobs:
                    self.content(hub.blobs[digest])
                else:
                    self.answer(404, {}, b"")

            def refused(self, repository: str) -> bool:
                if repository in hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    self.answer(401, {"X-Error-Code": "GatedRepo"}, b"")
                    return True
                return False

            def content(self, body: bytes, *, pause: int | None = None) -> None:
                start = 0
                etag = f'"cdn-{_sha256(body)[:8]}"'
                headers = {"Accept-Ranges": "bytes", "ETag": etag}
                wanted = self.headers.get("Range", "")
                if wanted.startswith("bytes=") and self.headers.get("If-Range", etag) == etag:
                    start = int(wanted[6:].partition("-")[0])
                    if start >= len(body):
                        self.answer(416, {}, b"")
                        return
                    headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                cut = hub.cuts.pop(0) if hub.cuts and "-524287" not in wanted else None
                self.answer(206 if start or wanted else 200, headers, body[start:], cut=cut, pause=pause)

            def answer(
                self, status: int, headers: dict[str, str], body: bytes, *, cut: int | None = None,
                pause: int | None = None,
            ) -> None:  # fmt: skip
                self.send_response(status)
                for key, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(key, value)
                self.end_headers()
                try:
                    if pause is not None and len(body) > pause and "-524287" not in self.headers.get("Range", ""):
                        self.wfile.write(body[:pause])
                        body = body[pause:]
                        hub.paused.set()
                        hub.proceed.wait(30)
                    self.wfile.write(body if cut is None else body[:cut])
                except OSError:
                    pass  # the client has read enough

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@contextmanager
def running_hub() -> Iterator[ScriptedHub]:
    """A hub that answers."""
    hub = ScriptedHub()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.proceed.set()
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


def hub_environment(hub: ScriptedHub, home: str) -> dict[str, str]:
    """The variables by which programs find this hub, and nothing of the user's."""
    return {
        "HF_ENDPOINT": hub.url,
        "HOSTLER_OLLAMA_REGISTRY": hub.url,
        "HF_HOME": home,
        "HF_TOKEN": "",
        "HUGGING_FACE_HUB_TOKEN": "",
        "HF_TOKEN_PATH": "",
        "HF_HUB_CACHE": "",
        "HUGGINGFACE_HUB_CACHE": "",
        "http_proxy": "",
        "HTTP_PROXY": "",
    }


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
