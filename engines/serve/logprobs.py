"""Log-probabilities of tokens, as OpenAI's API and vLLM have them."""

from __future__ import annotations

from glm_trt.engines.python.request import Request, Token
from glm_trt.engines.serve.protocol.chat import TokenLogprob, TopLogprob
from glm_trt.engines.serve.protocol.common import Json
from glm_trt.engines.serve.settings import Served


class Logprobs:
    """Log-probabilities as OpenAI's API has them."""

    def __init__(self, served: Served) -> None:
        self._text = served.text

    def of(self, token: Token) -> TokenLogprob:
        """A token with the most probable ones."""
        assert token.logprob is not None
        top = [TopLogprob(**self._named(*pair)) for pair in token.top_logprobs]
        return TokenLogprob(**self._named(token.token_id, token.logprob), top_logprobs=top)

    def _named(self, token_id: int, logprob: float) -> Json:
        raw = self._text.token_bytes(token_id)
        name = self._text.token_text(token_id)
        return {"token": name, "logprob": max(logprob, -9999.0), "bytes": [*raw]}

    def of_prompt(self, request: Request) -> list[Json | None] | None:
        """As vLLM gives them: for each token but the first, itself and the most probable ones."""
        if request.options.prompt_logprobs is None:
            return None
        found: list[Json | None] = [None]
        rows = zip(request.prompt[1:], request.prompt_logprobs, request.prompt_top_logprobs,
                   strict=True)  # fmt: skip
        for token, logprob, top in rows:
            ranked = dict(top) | {token: logprob}
            found.append({
                str(i): {"logprob": max(x, -9999.0),
                         "decoded_token": self._text.token_text(i)}
                for i, x in ranked.items()
            })  # fmt: skip
        return found
