"""The log as JSON, one object a line, each with the id of the request that it is about."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from tokenlib.api.errors import request_id
from tokenlib.api.guard import Guard, Line


class Lines(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """As JSON. What is JSON already, as the line of a request, is taken in."""
        line: dict[str, Any] = {
            "time": f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S}"
            f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if name := request_id.get():
            line["requestId"] = name
        said = record.args[0] if isinstance(record.args, tuple) and record.args else None
        if isinstance(said, Line):
            line |= said.said
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def handler() -> logging.Handler:
    """Writes such lines to stderr."""
    made = logging.StreamHandler()
    made.setFormatter(Lines())
    return made


def log_requests() -> None:
    """Log each request of the API so, whatever the rest of the process does with its log."""
    Guard.log.addHandler(handler())
    Guard.log.setLevel(logging.INFO)
    Guard.log.propagate = False
