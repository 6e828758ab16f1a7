"""Serving what was compressed: language models as OpenAI and Anthropic do, all else by the Open Inference Protocol."""

from typing import TYPE_CHECKING, Any

from lissom.server.hosts import InProcess
from lissom.server.service import FolderService, LanguageService, Limits, Shadow, TensorService

if TYPE_CHECKING:
    from lissom.server.app import create_app, serve

__all__ = ["FolderService", "InProcess", "LanguageService", "Limits", "Shadow", "TensorService", "create_app", "serve"]


def __getattr__(name: str) -> Any:
    """The application, when it is first asked for: a process may begin to read a model while its code is read."""
    if name not in ("create_app", "serve"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lissom.server import app

    return getattr(app, name)
