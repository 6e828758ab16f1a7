"""Serving what was compressed: language models as OpenAI and Anthropic do, all else by the Open Inference Protocol."""

from lissom.server.app import create_app, serve
from lissom.server.service import FolderService, LanguageService, Limits, TensorService

__all__ = ["FolderService", "LanguageService", "Limits", "TensorService", "create_app", "serve"]
