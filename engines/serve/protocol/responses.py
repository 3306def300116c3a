"""`/v1/responses`: OpenAI's body and answer, both made of items."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from glm_trt.engines.serve.protocol.chat import (
    Effort,
    FunctionName,
    JsonObject,
    PlainText,
    TokenLogprob,
)
from glm_trt.engines.serve.protocol.common import Answer, Body, Drawing, Json

Status = Literal["in_progress", "completed", "incomplete"]
LOGPROBS = "message.output_text.logprobs"


class InputText(Body):
    """What is said to the model."""

    type: Literal["input_text"]
    text: str


class SaidText(Body):
    """What the model said."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    parsed: Any = None  # that clients add to what they send back


ItemContent = str | list[Annotated[InputText | SaidText, Field(discriminator="type")]]


class InputMessage(Body):
    """A message of anybody."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: ItemContent
    id: str | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class SummaryText(Body):
    """Of reasoning; answers of this server have none."""

    type: Literal["summary_text"]
    text: str


class ThoughtText(Body):
    """Reasoning as it was."""

    type: Literal["reasoning_text"]
    text: str


class InputReasoning(Body):
    """What the model thought; its summary where there is no more of it."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[SummaryText] = Field(default_factory=list)
    content: list[ThoughtText] | None = None
    encrypted_content: None = None
    status: Status | None = None


class InputCall(Body):
    """A call that the model made. `arguments` is JSON."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None
    parsed_arguments: Any = None  # as above


class InputCallOutput(Body):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: ItemContent
    id: str | None = None
    status: Status | None = None


class ItemReference(Body):
    """An item that is stored elsewhere; refused, as nothing is."""

    type: Literal["item_reference"]
    id: str


def _type_of(item: Any) -> str | None:
    """Of an item; one without a type is a message."""
    found = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return f"<{found}>" if isinstance(found, str) else None


def _form_of(given: Any) -> str | None:
    if isinstance(given, str):
        return "<text>"
    return "<items>" if isinstance(given, list) else None


# Tags are in brackets, so that none of them is the name of a field.
Item = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[InputReasoning, Tag("<reasoning>")]
    | Annotated[InputCall, Tag("<function_call>")]
    | Annotated[InputCallOutput, Tag("<function_call_output>")]
    | Annotated[ItemReference, Tag("<item_reference>")],
    Discriminator(
        _type_of,
        custom_error_type="unknown_item",
        custom_error_message="expected an item of the type message, reasoning, function_call or "
        "function_call_output",
    ),
]
Input = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[Item], Field(min_length=1), Tag("<items>")],
    Discriminator(
        _form_of,
        custom_error_type="unknown_input",
        custom_error_message="expected text, or a list of items",
    ),
]  # fmt: skip


class FunctionTool(Body):
    """What may be called. `parameters` is a JSON schema of an object."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class NamedFunctionTool(Body):
    """The only function to be called."""

    type: Literal["function"]
    name: str


class SchemaFormat(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    json_schema: Json | bool = Field(alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    """`text`."""

    format: Annotated[
        PlainText | JsonObject | SchemaFormat, Field(discriminator="type")
    ] | None = None  # fmt: skip
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(Body):
    """`reasoning`. There are no summaries: the reasoning itself is given."""

    effort: Effort | None = None
    summary: Literal["auto"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None


class ObfuscationOptions(Body):
    """`stream_options`, in the one form that asks for nothing."""

    include_obfuscation: Literal[False] | None = None


class ResponsesBody(Drawing):
    """`POST /v1/responses`."""

    input: Input
    instructions: str | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedFunctionTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = (
        None
    )
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    metadata: dict[str, str] | None = None
    chat_template: str | None = None
    chat_template_kwargs: Json | None = None
    # What changes nothing here, in the one form that asks for nothing.
    service_tier: Literal["auto", "default"] | None = None
    truncation: Literal["disabled"] | None = None
    stream_options: ObfuscationOptions | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # What needs a store, which there is not.
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | Json | None = None
    prompt: Json | None = None


class OutputText(Answer):
    """What the model says; with log-probabilities, if they are wanted, of its tokens."""

    type: Literal["output_text"] = "output_text"
    text: str = ""
    annotations: list[Any] = Field(default_factory=list)
    logprobs: list[TokenLogprob] = Field(default_factory=list)


class ReasoningText(Answer):
    """What the model thinks."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str = ""


class OutputMessage(Answer):
    """A message of the answer."""

    id: str
    type: Literal["message"] = "message"
    status: Status = "in_progress"
    role: Literal["assistant"] = "assistant"
    content: list[OutputText] = Field(default_factory=list)


class OutputReasoning(Answer):
    """Reasoning before an answer."""

    id: str
    type: Literal["reasoning"] = "reasoning"
    status: Status = "in_progress"
    summary: list[Any] = Field(default_factory=list)
    content: list[ReasoningText] = Field(default_factory=list)
    encrypted_content: None = None


class OutputCall(Answer):
    """A call that is to be made; `arguments` is whole JSON if it is completed."""

    id: str
    type: Literal["function_call"] = "function_call"
    status: Status = "in_progress"
    call_id: str
    name: str
    arguments: str = ""


OutputItem = OutputMessage | OutputReasoning | OutputCall


class InputDetails(Answer):
    """`input_tokens_details`."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(Answer):
    """`output_tokens_details`."""

    reasoning_tokens: int


class ResponseUsage(Answer):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class IncompleteDetails(Answer):
    """Why there is no more of it."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseError(Answer):
    """Why it failed."""

    code: Literal["server_error", "rate_limit_exceeded"]
    message: str


class ModelResponse(Answer):
    """The answer as a whole, and what it was asked with."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[OutputItem] = Field(default_factory=list)
    usage: ResponseUsage | None = None
    instructions: str | None
    tools: list[Json]
    tool_choice: str | Json
    parallel_tool_calls: bool
    text: Json
    reasoning: Json
    max_output_tokens: int | None
    max_tool_calls: None = None
    temperature: float
    top_p: float
    top_logprobs: int
    metadata: dict[str, str]
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    service_tier: Literal["default"] = "default"
    truncation: Literal["disabled"] = "disabled"
    store: Literal[False] = False
    background: Literal[False] = False
    previous_response_id: None = None
