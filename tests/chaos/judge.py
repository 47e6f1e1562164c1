"""The storms' requests in the clients' protocols, streamed and whole, and exact judgement of what comes back."""

from __future__ import annotations

import json
import random
import re
from typing import Any, Literal

import msgspec

Protocol = Literal["openai", "ollama", "anthropic", "responses", "embeddings"]
#: The protocols of chats that every kind of backend is asked in.
CHATS: tuple[Protocol, ...] = ("openai", "ollama", "anthropic")
#: `broken`: the answer began, and its end says that something went wrong.
Verdict = Literal["complete", "broken", "refused"]

PATHS: dict[Protocol, str] = {
    "openai": "/v1/chat/completions",
    "ollama": "/api/chat",
    "anthropic": "/v1/messages",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
}


class Lie(AssertionError):
    """What reached the client is wrong and looks right; `kind` is how: `cut`, `duplicated`, `mixed` or `malformed`."""

    def __init__(self, kind: Literal["cut", "duplicated", "mixed", "malformed"], shown: str) -> None:
        super().__init__(f"{kind}: {shown}")
        self.kind = kind


class StormRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Its answer is `words` words, each with the request's `name` and its own number."""

    name: str
    words: int
    model: str
    protocol: Protocol
    stream: bool

    @classmethod
    def make(cls, number: int, models: tuple[str, ...], chance: random.Random) -> StormRequest:
        """A request of a random kind."""
        return cls(
            name=f"r{number:06}",
            words=chance.randrange(2, 12),
            model=chance.choice(models),
            protocol=chance.choice(CHATS),
            stream=chance.random() < 0.6,
        )

    @property
    def path(self) -> str:
        return PATHS[self.protocol]

    @property
    def body(self) -> dict[str, Any]:
        text = f"This is number {self.name}, {self.words} words, please."
        if self.protocol == "embeddings":
            return {"model": self.model, "input": text}
        if self.protocol == "responses":
            return {"model": self.model, "input": text, "stream": self.stream}
        messages = [{"role": "user", "content": text}]
        more = {"max_tokens": 100} if self.protocol == "anthropic" else {}
        return {"model": self.model, "messages": messages, "stream": self.stream, **more}

    @property
    def answer(self) -> list[str]:
        """The words that a complete answer has."""
        return [f"{self.name}.{index}" for index in range(self.words)]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a body says: its text, whether it ends as a complete answer does, and whether it reports an error."""

    text: str
    ended: bool
    failed: bool


def judge(request: StormRequest, status: int, body: str) -> Verdict:
    """What became of the request. Raises `Lie`."""
    if status != 200:
        if status not in (429, 500, 502, 503, 504, 529) or not _has_error(body):
            raise Lie("malformed", f"{request} got {status}: {body[:500]}")
        return "refused"
    if request.protocol == "embeddings":
        return _judge_vector(request, body)
    try:
        answer = _READERS[request.protocol, request.stream](body)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Lie("malformed", f"{request} got {body[:500]!r}: {error!r}") from error
    words = answer.text.split()
    if any(word.partition(".")[0] != request.name for word in words):
        raise Lie("mixed", f"{request} got {answer.text!r}")
    if len(set(words)) < len(words):
        raise Lie("duplicated", f"{request} got {answer.text!r}")
    if words != request.answer[: len(words)]:
        raise Lie("cut", f"{request} got {answer.text!r}")
    if answer.failed:
        return "broken"
    if not answer.ended or words != request.answer:
        raise Lie("cut", f"{request} got {body[-500:]!r}")
    return "complete"


def _judge_vector(request: StormRequest, body: str) -> Verdict:
    """The vector of a text is made of the numbers in its request's name, and of its words."""
    try:
        [entry] = json.loads(body)["data"]
        vector = [float(each) for each in entry["embedding"]]
    except (ValueError, KeyError, TypeError) as error:
        raise Lie("malformed", f"{request} got {body[:500]!r}: {error!r}") from error
    if vector != [*(float(each) for each in re.findall(r"\d+", request.name)), float(request.words)]:
        raise Lie("mixed", f"{request} got {vector}")
    return "complete"


def _has_error(body: str) -> bool:
    try:
        return bool(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return False


def _events(body: str) -> list[str]:
    """The data of a stream's events."""
    return [line[5:].strip() for line in body.split("\n") if line.startswith("data:")]


def _openai_stream(body: str) -> Answer:
    events = _events(body)
    values = [json.loads(each) for each in events if each != "[DONE]"]
    choices = [choice for value in values for choice in value.get("choices", ())]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    finished = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    ended = events[-1:] == ["[DONE]"] and events.count("[DONE]") == 1 and finished == ["stop"]
    return Answer(text=text, ended=ended, failed=any("error" in value for value in values))


def _openai_whole(body: str) -> Answer:
    value = json.loads(body)
    (choice,) = value["choices"]
    return Answer(text=choice["message"]["content"], ended=choice["finish_reason"] == "stop", failed=False)


def _ollama_stream(body: str) -> Answer:
    values = [json.loads(line) for line in body.split("\n") if line]
    text = "".join(value["message"]["content"] for value in values if "error" not in value)
    done = [value for value in values if value.get("done")]
    ended = len(done) == 1 and values[-1] is done[0] and done[0].get("done_reason") == "stop"
    return Answer(text=text, ended=ended, failed=any("error" in value for value in values))


def _ollama_whole(body: str) -> Answer:
    value = json.loads(body)
    return Answer(text=value["message"]["content"], ended=value["done_reason"] == "stop", failed=False)


def _anthropic_stream(body: str) -> Answer:
    values = [json.loads(each) for each in _events(body)]
    deltas = [value["delta"] for value in values if value["type"] == "content_block_delta"]
    text = "".join(delta["text"] for delta in deltas if delta["type"] == "text_delta")
    types = [value["type"] for value in values]
    ended = types[-1:] == ["message_stop"] and types.count("message_stop") == 1
    return Answer(text=text, ended=ended, failed="error" in types)


def _anthropic_whole(body: str) -> Answer:
    value = json.loads(body)
    text = "".join(block["text"] for block in value["content"] if block["type"] == "text")
    return Answer(text=text, ended=value["stop_reason"] == "end_turn", failed=False)


def _responses_stream(body: str) -> Answer:
    values = [json.loads(each) for each in _events(body) if each != "[DONE]"]
    types = [value["type"] for value in values]
    text = "".join(value["delta"] for value in values if value["type"] == "response.output_text.delta")
    ended = types[-1:] == ["response.completed"] and types.count("response.completed") == 1
    return Answer(text=text, ended=ended, failed="error" in types or "response.failed" in types)


def _responses_whole(body: str) -> Answer:
    value = json.loads(body)
    parts = [part for item in value["output"] if item["type"] == "message" for part in item["content"]]
    text = "".join(part["text"] for part in parts if part["type"] == "output_text")
    return Answer(text=text, ended=value["status"] == "completed", failed=value.get("error") is not None)


_READERS = {
    ("openai", True): _openai_stream,
    ("openai", False): _openai_whole,
    ("ollama", True): _ollama_stream,
    ("ollama", False): _ollama_whole,
    ("anthropic", True): _anthropic_stream,
    ("anthropic", False): _anthropic_whole,
    ("responses", True): _responses_stream,
    ("responses", False): _responses_whole,
}
