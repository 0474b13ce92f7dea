"""Qwen Proxy: an OpenAI-compatible gateway to Qwen models that keeps every turn on record."""

__version__ = "0.1.0"
