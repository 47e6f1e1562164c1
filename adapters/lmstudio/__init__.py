"""LM Studio's protocol: its own chat, lists and model operations; other inference is OpenAI's."""
