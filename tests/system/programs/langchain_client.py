"""LangChain's models for OpenAI and Ollama, as its documentation uses them. Arguments: the gateway's URL, two models."""

import json
import sys

from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI

url, one, other = sys.argv[1:]
question = [("system", "Be brief."), ("human", "Hello")]


def answer(model):
    pieces = list(model.stream(question))
    whole = model.invoke(question)
    return {
        "words": "".join(piece.text for piece in pieces),
        "usage": sum((piece.usage_metadata or {}).get("output_tokens", 0) for piece in pieces),
        "whole": whole.text,
    }


openai = ChatOpenAI(model=one, base_url=f"{url}/v1", api_key="unused", max_retries=0, stream_usage=True)
ollama = ChatOllama(model=other, base_url=url, validate_model_on_init=True)
print(json.dumps({"openai": answer(openai), "ollama": answer(ollama)}))
