"""llama.cpp's own protocol: `llama-server`'s routes beside those of OpenAI, in single-model and router mode."""
