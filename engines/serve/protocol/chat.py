"""`/v1/chat/completions`: OpenAI's body, z.ai's fields, and what vLLM's users know."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from glm_trt.engines.serve.protocol.common import (
    Answer,
    Body,
    FinishReason,
    Json,
    SamplingBody,
    Usage,
)


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class CalledFunction(Body):
    """Arguments are JSON, or the object itself."""

    name: str
    arguments: str | Json = ""


class CallOfHistory(Body):
    """A call that the assistant made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # some clients send streamed calls back as they came


class SystemMessage(Body):
    """What holds for the whole conversation."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Body):
    """What the user says."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(Body):
    """What the model said. Fields that answers have and prompts do not may be null."""

    role: Literal["assistant"]
    content: Content | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallOfHistory] | None = None
    name: str | None = None
    refusal: None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class ToolMessage(Body):
    """What a call gave."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str | None = None
    name: str | None = None


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(Body):
    """`parameters` is a JSON schema of an object."""

    name: FunctionName
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class Tool(Body):
    """What may be called."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """Its name."""

    name: str


class NamedTool(Body):
    """The only function to be called."""

    type: Literal["function"]
    function: NamedFunction


class PlainText(Body):
    """No form at all."""

    type: Literal["text"]


class JsonObject(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Body):
    """A schema by name."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    json_schema: Json | bool | None = Field(None, alias="schema")
    strict: bool | None = None


class JsonBySchema(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[PlainText | JsonObject | JsonBySchema, Field(discriminator="type")]


class Thinking(Body):
    """z.ai's `thinking`; with `clear_thinking` false earlier reasoning stays in the prompt."""

    type: Literal["enabled", "disabled"] = "enabled"
    clear_thinking: bool | None = None


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatBody(SamplingBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    thinking: Thinking | None = None
    clear_thinking: bool | None = None
    reasoning_effort: Effort | None = None
    do_sample: bool | None = None
    tool_stream: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: Json | None = None
    # What changes nothing here, in the one form that asks for nothing.
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: list[Literal["text"]] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    verbosity: Literal["medium"] | None = None


class TopLogprob(Answer):
    """One of the most probable tokens."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Answer):
    """Of the tokens of a choice, or of a piece of it."""

    content: list[TokenLogprob]
    refusal: None = None


class FunctionCall(Answer):
    """`arguments` is JSON."""

    name: str
    arguments: str


class ToolCall(Answer):
    """A call that is to be made."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Answer):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: None = None


class ChatChoice(Answer):
    """One of `n`."""

    index: int
    message: ChatMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(Answer):
    """The answer as a whole."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None = None
    service_tier: Literal["default"] = "default"
    prompt_logprobs: list[dict[str, Any] | None] | None = None


class DeltaFunction(Answer):
    """The name comes first, `arguments` in pieces."""

    name: str | None = None
    arguments: str | None = None


class DeltaToolCall(Answer):
    """A piece of a call."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: DeltaFunction


class Delta(Answer):
    """What is new of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[DeltaToolCall] | None = None


class ChunkChoice(Answer):
    """What is new of a choice."""

    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(Answer):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None
