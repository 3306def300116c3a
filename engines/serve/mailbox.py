"""Events of the engine's thread, for one task of the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """Made in the event loop's thread; any other thread puts, one task gets."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[Item] = deque()
        self._filled = asyncio.Event()

    def put(self, item: Item) -> None:
        """Add one; nothing happens where the event loop has ended."""
        self._items.append(item)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._filled.set)

    async def get(self, seconds: float | None = None) -> Item | None:
        """The next one, waited for no longer than so many seconds; None then."""
        while not self._items:
            self._filled.clear()
            if self._items:  # put in between
                break
            try:
                await asyncio.wait_for(self._filled.wait(), seconds)
            except TimeoutError:
                return None
        return self._items.popleft()
