"""litellm as a client, in each protocol that it may take a gateway for. Arguments: the gateway's URL, two models."""

import json
import sys

import litellm

litellm.suppress_debug_info = True
url, *names = sys.argv[1:]
ROUTES = {
    "openai": "/v1",
    "hosted_vllm": "/v1",
    "lm_studio": "/v1",
    "llamafile": "/v1",
    "ollama_chat": "",
    "ollama": "",
    "anthropic": "",
}

answers = {}
for number, (provider, path) in enumerate(ROUTES.items()):
    # The models take turns, so that each stream has to wait for its own.
    asked = {
        "model": f"{provider}/{names[number % 2]}",
        "messages": [{"role": "user", "content": "Hello"}],
        "api_base": url + path,
        "api_key": "unused",
        "num_retries": 0,
        "timeout": 30,
    }
    pieces = list(litellm.completion(**asked, stream=True))
    whole = litellm.completion(**asked)
    answers[provider] = {
        "words": "".join(piece.choices[0].delta.content or "" for piece in pieces),
        "finish": pieces[-1].choices[0].finish_reason,
        "whole": whole.choices[0].message.content,
        "usage": whole.usage.completion_tokens,
    }
print(json.dumps(answers))
