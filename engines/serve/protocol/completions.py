"""`/v1/completions`, `/tokenize`, `/detokenize`, `/v1/models` and what tells of the server."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from glm_trt.engines.serve.protocol.chat import Message, Thinking, Tool
from glm_trt.engines.serve.protocol.common import Answer, Body, FinishReason, SamplingBody, Usage

TokenId = Annotated[int, Field(ge=0)]


class CompletionBody(SamplingBody):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    suffix: Literal[""] | None = None


class Logprobs(Answer):
    """Of a text's tokens; None where nothing is before one."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(Answer):
    """The text of one prompt."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None
    prompt_logprobs: list[dict[str, Any] | None] | None = None


class Completion(Answer):
    """The answer as a whole, and each event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None


class TokenizeBody(Body):
    """`POST /tokenize`: of a text, or of a conversation."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}]}
    )
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    thinking: Thinking | None = None
    chat_template: str | None = None
    add_special_tokens: bool = True


class Tokens(Answer):
    """IDs, how many, and how many a request may have."""

    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[TokenId]


class Text(Answer):
    """The text of IDs."""

    prompt: str


class Model(Answer):
    """One model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "glm-trt"
    max_model_len: int


class Models(Answer):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(Answer):
    """Of the process, or of the engine."""

    status: Literal["ok", "starting", "draining", "failed"]


class Version(Answer):
    """Of this package."""

    version: str
