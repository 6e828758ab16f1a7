"""What a server and its engines write to the error stream: warnings for people, or everything as JSON for machines.

No line holds a key, a prompt or an answer.
"""

import json
import logging
import os
import sys
from datetime import UTC, datetime

KINDS = ("text", "json")
TOLD = "LISSOM_LOG"  # by which an engine's process is told what its server was


class AsJson(logging.Formatter):
    """One JSON object a line; what a record is given as `extra={"figures": {...}}` is in it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "figures", {}),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told)


def begin(kind: str) -> None:
    """Write what is logged as `kind` from now on, in this process and in those that it starts."""
    os.environ[TOLD] = kind
    handler = logging.StreamHandler(sys.stderr)
    if kind == "json":
        handler.setFormatter(AsJson())
    logger = logging.getLogger("lissom")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if kind == "json" else logging.WARNING)
    logger.propagate = False
