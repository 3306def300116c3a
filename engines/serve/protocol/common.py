"""What the endpoints have in common: strict bodies, errors, sampling fields, usage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Body(BaseModel):
    """What is asked. A field that is not listed is an error, as a setting that is silently ignored
    is one nobody finds.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Answer(BaseModel):
    """What is answered."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Answer):
    """Of OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(Answer):
    """Every answer that is not the one asked for."""

    error: ErrorDetail


class ApiError(Exception):
    """What a client is told.

    Parameters
    ----------
    message : what was expected and found.
    param : the field at fault, such as "messages.0.content".
    status : of HTTP.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        type: str = "invalid_request_error",
        code: str | None = None,
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_seconds = status, retry_seconds
        self.detail = ErrorDetail(message=message, type=type, param=param, code=code)

    def body(self) -> Json:
        """As it is sent."""
        return ErrorBody(error=self.detail).model_dump()


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool = False


Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]


class Choosing(Body):
    """How tokens are chosen; None is the server's default."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Seed | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool = False


class Drawing(Choosing):
    """That, and what else OpenAI's bodies have in common."""

    model: str
    stop: str | list[str] | None = None
    stream: bool = False
    user: str | None = None
    request_id: Annotated[str, Field(pattern="^[!-~]{1,128}$")] | None = None


class SamplingBody(Drawing):
    """Of an answer with choices."""

    max_tokens: Annotated[int, Field(ge=0)] | None = None
    n: Annotated[int, Field(ge=1)] = 1
    stream_options: StreamOptions | None = None


class CachedTokens(Answer):
    """`prompt_tokens_details`."""

    cached_tokens: int


class CompletionTokens(Answer):
    """`completion_tokens_details`."""

    reasoning_tokens: int


class Usage(Answer):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: CompletionTokens | None = None


FinishReason = Literal["stop", "length", "tool_calls", "abort"]
Json = dict[str, Any]
KEEP_ALIVE = ": keep-alive\n\n"  # a comment, in server-sent events
