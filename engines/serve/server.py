"""Running the application: uvicorn, signals, the end."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from glm_trt.engines.serve.engine_loop import EngineLoop


class Server(uvicorn.Server):
    """uvicorn, which drains before it ends: on SIGTERM or SIGINT no more is taken on, and what was
    begun is finished within the grace period. A second signal ends at once.

    Parameters
    ----------
    announce : called with the port when requests are accepted.
    """

    def __init__(
        self, app: FastAPI, engine: EngineLoop, host: str, port: int,
        announce: Callable[[int], None],
    ) -> None:  # fmt: skip
        config = uvicorn.Config(
            app, host=host, port=port, log_level="warning", access_log=False, lifespan="off",
            timeout_keep_alive=30, timeout_graceful_shutdown=5, server_header=False,
        )  # fmt: skip
        super().__init__(config)
        self._engine, self._announce = engine, announce
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: Any = None) -> None:
        """As uvicorn's, then tell where."""
        await super().startup(sockets)
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            self._announce(port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        if self._draining is not None or not self.started:
            super().handle_exit(sig, frame)
            return
        loop = asyncio.get_running_loop()
        self._draining = loop.create_task(self._drain(sig))

    async def _drain(self, sig: int) -> None:
        name = signal.Signals(sig).name
        left = self._engine.running + self._engine.waiting
        print(f"{name}: finishing {left} sequences", file=sys.stderr, flush=True)
        await asyncio.to_thread(self._engine.close)
        self.should_exit = True
