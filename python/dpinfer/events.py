"""Waiting for batches in an event loop: one descriptor per session, which is readable when a batch has ended."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any, List, Tuple


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class Waiters:
    """Those that await a batch of one session, in whichever loops. Any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.RLock()
        self._waiting: List[Tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]", Any]] = []

    async def wait(self, pending: Any) -> None:
        """Returns when ``pending.done()``."""
        loop = asyncio.get_running_loop()
        future: "asyncio.Future[None]" = loop.create_future()
        with self._lock:
            if not any(other is loop for other, _, _ in self._waiting):
                loop.add_reader(self._descriptor, self._look)
            self._waiting.append((loop, future, pending))
        try:
            self._look()  # it may have ended before anybody listened
            await future
        finally:
            with self._lock:
                self._waiting = [entry for entry in self._waiting if entry[1] is not future]
                if not any(other is loop for other, _, _ in self._waiting):
                    loop.remove_reader(self._descriptor)

    def _look(self) -> None:
        """Whoever reads the descriptor looks for all, also for those of other loops."""
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:
            pass
        with self._lock:
            waiting = list(self._waiting)
        for loop, future, pending in waiting:
            if pending.done():
                loop.call_soon_threadsafe(_wake, future)
