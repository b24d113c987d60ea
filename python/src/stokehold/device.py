"""Batches to accelerators: an arena is pinned once, and copies out of it run beside the stage.

Batches that another worker published come in memory of their own, which is not
pinned: copying those waits.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from . import views
from .connection import Connection
from .memory import Mapping

_REGISTER_READ_ONLY = 8  # cudaHostRegisterReadOnly: the pages are mapped without write access
_ALREADY_REGISTERED = 712
_log = logging.getLogger("stokehold")


class Uploader:
    """Copies batches to a device, and keeps each until its copy is done."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._seen: weakref.WeakSet[Mapping] = weakref.WeakSet()
        self._pending: deque[tuple[Any, list[Any]]] = deque()

    def to_device(self, batch: pa.RecordBatch, device: str, columns: Iterable[str] | None) -> dict[str, Any]:
        """Return columns by name as PyTorch tensors on a CUDA device; the copies may still run.

        They run on the current stream, so work queued on it afterwards sees them done.
        RuntimeError without CUDA, ModuleNotFoundError without PyTorch.
        """
        import torch

        target = torch.device(device)
        if target.type != "cuda" or not torch.cuda.is_available():
            raise RuntimeError(
                f"to_device: {device!r} is not available: this PyTorch sees no CUDA device; "
                "task.torch gives tensors on the CPU"
            )
        self.collect()
        host = views.torch(batch, columns)
        for column in batch.columns:
            for part in column.buffers():
                if part is not None and part.size:
                    self._pin(torch, part.address, part.size)
        with torch.cuda.device(target):
            out = {name: t.to(target, non_blocking=True) for name, t in host.items()}
            event = torch.cuda.Event()
            event.record()
        self._pending.append((event, [batch, host]))
        return out

    def collect(self) -> None:
        """Forget batches whose copies are done."""
        while self._pending and self._pending[0][0].query():
            self._pending.popleft()

    def finish(self) -> None:
        """Wait for all copies."""
        while self._pending:
            self._pending[0][0].synchronize()
            self._pending.popleft()

    def _pin(self, torch: Any, address: int, size: int) -> None:
        mapping = self._connection.mapping_of(address, size)
        # Pinning the pages of a single batch would cost more than copying them once.
        if mapping is None or not mapping.pooled or mapping in self._seen:
            return
        self._seen.add(mapping)
        runtime = torch.cuda.cudart()
        code = int(runtime.cudaHostRegister(mapping.address, mapping.size, _REGISTER_READ_ONLY))
        if code == 0:
            # Before the pages are unmapped: the mapping's own finalizer runs after this one.
            weakref.finalize(mapping, runtime.cudaHostUnregister, mapping.address).atexit = False
        elif code != _ALREADY_REGISTERED:
            _log.warning(
                "cannot pin an arena of %d bytes (CUDA error %d): copies to the device wait", mapping.size, code
            )
