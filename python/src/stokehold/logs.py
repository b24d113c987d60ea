"""Python's logging, bridged to the host's."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from . import wire
from .errors import HostGoneError

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class HostHandler(logging.Handler):
    """Sends records to the host, with the fields given as extra as attributes."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record; one that is too large loses its attributes."""
        try:
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + (self.formatter or logging.Formatter()).formatException(record.exc_info)
            note: dict[str, Any] = {"level": _level(record.levelno), "message": wire.clip(text, wire.MAX_MESSAGE)}
            attrs = {"logger": record.name}
            attrs.update({k: v for k, v in vars(record).items() if k not in _STANDARD})
            with contextlib.suppress(HostGoneError):
                self._send(_encode(note, attrs))
        except Exception:  # noqa: BLE001 (a log line must not end a stage)
            self.handleError(record)


def _encode(note: dict[str, Any], attrs: dict[str, Any]) -> bytes:
    try:
        raw = wire.to_json({**note, "attrs": attrs})
    except (TypeError, ValueError):
        raw = wire.to_json({**note, "attrs": {k: str(v) for k, v in attrs.items()}})
    if len(raw) > wire.MAX_PAYLOAD:
        raw = wire.to_json({**note, "attrs": {"dropped": "attributes: too large"}})
    return raw


def _level(number: int) -> str:
    if number >= logging.ERROR:
        return "ERROR"
    if number >= logging.WARNING:
        return "WARN"
    return "INFO" if number >= logging.INFO else "DEBUG"
