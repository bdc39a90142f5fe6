"""Logs on stderr: readable lines on a terminal, else JSON lines in the format of Cloud Logging, which other collectors
read, too: https://cloud.google.com/logging/docs/structured-logging
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_SEVERITIES = {"WARN": "WARNING", "FATAL": "CRITICAL"}


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object, with the keys that a caller passes as extra={"fields": {...}}."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "severity": _SEVERITIES.get(record.levelname, record.levelname),
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "message": record.getMessage(),
            "logger": record.name,
            "process": record.process,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["stack_trace"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class TerminalFormatter(logging.Formatter):
    """Formats a record for people: time, what is worth a second look, message, and how long a request took."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        # As JSON has it: a request's path may hold what a terminal would obey.
        message = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in record.getMessage())
        latency = getattr(record, "fields", {}).get("httpRequest", {}).get("latency")
        line = f"{time}  {level}{message}" + (f"  {1000 * float(latency[:-1]):.1f} ms" if latency else "")
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(level: str) -> None:
    """Make every logger of the process write to stderr, uvicorn's too. Our line per request replaces uvicorn's."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TerminalFormatter() if sys.stderr.isatty() else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"
    logging.captureWarnings(True)
