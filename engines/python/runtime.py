"""A bundle ready to run: the object that `glm_trt.load` gives, the same on every backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.engines.python.backend import Backend
from glm_trt.engines.python.request import GenerateOptions, Token
from glm_trt.engines.python.sampling import Sampling
from glm_trt.engines.python.session import Session, checked_ids
from glm_trt.engines.python.text import Text
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.errors import GlmTrtError


class Runtime:
    """Runs a bundle. Use as a context manager, or call `close`.

    Parameters
    ----------
    backend : what runs the blocks.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def __enter__(self) -> Runtime:
        """Nothing to do: the backend has loaded everything."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Close, whatever happened."""
        self.close()

    def close(self) -> None:
        """Release what the backend holds."""
        self.backend.close()

    @property
    def bundle(self) -> Bundle:
        """The bundle that runs."""
        return self.backend.bundle

    @cached_property
    def text(self) -> Text | None:
        """The bundle's tokenizer and chat template; None where its checkpoint had none."""
        has_any = self.bundle.tokenizer_file("tokenizer.json") is not None
        return Text(self.bundle) if has_any else None

    def forward(self, input_ids: Any) -> NDArray[np.float32]:
        """Logits from empty states: ids [B, S] → float32 [B, S, vocab]. Long sequences are run in
        parts.

        Raises
        ------
        GlmTrtError
            If the ids are not integers [B, S] of the vocabulary, or too many.
        """
        ids = np.asarray(input_ids)
        if ids.ndim != 2:
            raise GlmTrtError(
                f"input_ids: expected integers [B, S], not empty; found {ids.dtype} {ids.shape}"
            )
        checked_ids(ids.reshape(-1), self.bundle.config.vocab_size)
        rows, length = ids.shape
        batch = self.backend.batch(rows, length)
        most = max(self.backend.most_tokens(length) // rows, 1)
        parts = [ids[:, begin : begin + most] for begin in range(0, length, most)]
        return np.concatenate([batch.step(part, logits="all") for part in parts], axis=1)

    def generate(
        self,
        input_ids: Sequence[Sequence[int]] | Any,
        max_new_tokens: int = 32,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        eos_token_ids: tuple[int, ...] | None = None,
        drafts: int = 0,
        on_token: Callable[[Token], None] | None = None,
    ) -> list[list[int]]:
        """Continue each prompt: the new tokens of each, the end token included.

        Parameters
        ----------
        input_ids : prompts of token IDs, of one length or of several.
        max_new_tokens : how many at most.
        temperature, top_k, top_p, min_p, repetition_penalty, seed : as in `Sampling`; greedy by
            default. Prompts differ in their draws only as far as their lengths and logits do.
        stop, eos_token_ids : as in `GenerateOptions`.
        drafts : as in `Session`.
        on_token : called with each token of the only prompt as it comes.

        Raises
        ------
        GlmTrtError
            If a prompt or an option is not as described.
        """
        prompts = [checked_ids(ids, self.bundle.config.vocab_size) for ids in input_ids]
        if not prompts or (on_token is not None and len(prompts) > 1):
            expected = "one prompt with on_token" if prompts else "at least one prompt"
            raise GlmTrtError(f"input_ids: expected {expected}, found {len(prompts)}")
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        options = GenerateOptions(max_new_tokens, sampling, tuple(stop), eos_token_ids)
        session = self.session(max_batch=len(prompts), drafts=drafts)
        requests = [session.submit(ids, options, on_token=on_token) for ids in prompts]
        session.run()
        return [request.tokens for request in requests]

    def session(
        self, *, max_batch: int = 8, prefill_chunk: int | None = None, drafts: int = 0
    ) -> Session:
        """A `Session`, for requests that come and go."""
        return Session(
            self.backend, self.text,
            max_batch=max_batch, prefill_chunk=prefill_chunk, drafts=drafts,
        )  # fmt: skip
