"""LM Studio's protocol: its own lists and orders; answers are OpenAI's."""
