"""`/v1/messages`: Anthropic's body and answer, both made of blocks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from glm_trt.engines.serve.protocol.chat import FunctionName
from glm_trt.engines.serve.protocol.common import Answer, Body, Choosing, Json


def one_of(*kinds: str) -> BeforeValidator:
    """A check that a block's type is one of these, which tells of another that it is not one."""

    def check(given: Any) -> Any:
        if isinstance(given, dict) and given.get("type") not in kinds:
            raise PydanticCustomError(
                "type_of_block",
                "expected a block of the type {kinds}, found {kind}",
                {"kinds": " or ".join(kinds), "kind": repr(given.get("type"))},
            )
        return given

    return BeforeValidator(check)


def _tag(given: Any) -> str:
    """In brackets, so that it is not the name of a field."""
    return f"<{given.get('type') if isinstance(given, dict) else getattr(given, 'type', None)}>"


class CacheControl(Body):
    """Where a prefix would be kept; here every one is, as far as there is room."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Cacheable(Body):
    """What may say that it ends a prefix to be kept."""

    cache_control: CacheControl | None = None


class TextBlock(Cacheable):
    """What somebody says."""

    type: Literal["text"]
    text: str
    citations: None = None


class ThinkingBlock(Body):
    """What the model thought, as it was answered. The signature is not looked at."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class RedactedThinkingBlock(Body):
    """What only another server can read; it is left out."""

    type: Literal["redacted_thinking"]
    data: str


class DirectCaller(Body):
    """Who calls: the model itself."""

    type: Literal["direct"]


class ToolUseBlock(Cacheable):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: Json
    caller: DirectCaller | None = None
    toolset_name: None = None


Texts = str | list[Annotated[TextBlock, one_of("text")]]


class ToolResultBlock(Cacheable):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Texts = ""
    is_error: bool | None = None
    toolset_name: None = None


UserBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")] | Annotated[ToolResultBlock, Tag("<tool_result>")],
    Discriminator(_tag),
    one_of("text", "tool_result"),
]
AssistantBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[RedactedThinkingBlock, Tag("<redacted_thinking>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")],
    Discriminator(_tag),
    one_of("text", "thinking", "redacted_thinking", "tool_use"),
]


class UserTurn(Body):
    """What the user says; results of calls come first."""

    role: Literal["user"]
    content: str | list[UserBlock]


class AssistantTurn(Body):
    """What the model said."""

    role: Literal["assistant"]
    content: str | list[AssistantBlock]


class SystemTurn(Body):
    """What holds from there on."""

    role: Literal["system"]
    content: Texts


Turn = Annotated[UserTurn | AssistantTurn | SystemTurn, Field(discriminator="role")]


class CustomTool(Cacheable):
    """What may be called. `input_schema` is a JSON schema of an object."""

    type: Literal["custom"] | None = None
    name: FunctionName
    description: str | None = None
    input_schema: Json
    strict: bool | None = None
    # What changes nothing here, in the form that asks for nothing.
    eager_input_streaming: bool | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_custom(cls, given: Any) -> Any:
        """By name, before all that such a tool has not."""
        kind = given.get("type") if isinstance(given, dict) else None
        if isinstance(kind, str) and kind != "custom":
            raise PydanticCustomError(
                "tool_of_a_server",
                "a tool of the type {kind} is not known here; expected a custom one, with an "
                "input_schema",
                {"kind": repr(kind)},
            )
        return given


class ParallelChoice(Body):
    """With `disable_parallel_tool_use` there is one call at most."""

    disable_parallel_tool_use: bool = False


class ChoiceAuto(ParallelChoice):
    """The model decides."""

    type: Literal["auto"]


class ChoiceAny(ParallelChoice):
    """It calls something."""

    type: Literal["any"]


class ChoiceTool(ParallelChoice):
    """It calls this."""

    type: Literal["tool"]
    name: str


class ChoiceNone(Body):
    """It calls nothing."""

    type: Literal["none"]


ToolChoice = Annotated[
    ChoiceAuto | ChoiceAny | ChoiceTool | ChoiceNone, Field(discriminator="type")
]


class ThinkingOn(Body):
    """It thinks. The budget is checked, and does not end its thoughts; `max_tokens` does."""

    type: Literal["enabled"]
    budget_tokens: Annotated[int, Field(ge=1024)]
    display: Literal["summarized"] | None = None


class ThinkingAdaptive(Body):
    """It thinks as long as it wants."""

    type: Literal["adaptive"]
    display: Literal["summarized"] | None = None


class ThinkingOff(Body):
    """It answers at once."""

    type: Literal["disabled"]


class JsonFormat(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: Json = Field(alias="schema")


class OutputConfig(Body):
    """The form of the answer. The effort changes nothing: the model knows no degrees of it."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class Metadata(Body):
    """Of the request."""

    user_id: str | None = None


class PromptBody(Body):
    """`POST /v1/messages/count_tokens`, and what a request has of it."""

    model: str
    messages: Annotated[list[Turn], Field(min_length=1)]
    system: Texts | None = None
    tools: list[CustomTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Annotated[
        ThinkingOn | ThinkingAdaptive | ThinkingOff, Field(discriminator="type")
    ] | None = None  # fmt: skip
    output_config: OutputConfig | None = None
    chat_template: str | None = None
    chat_template_kwargs: Json | None = None
    # What changes nothing here, in the form that asks for nothing.
    cache_control: CacheControl | None = None
    speed: Literal["standard"] | None = None


class MessagesBody(PromptBody, Choosing):
    """`POST /v1/messages`."""

    max_tokens: Annotated[int, Field(ge=0)]
    stop_sequences: list[str] | None = None
    stream: bool = False
    metadata: Metadata | None = None
    request_id: Annotated[str, Field(pattern="^[!-~]{1,128}$")] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None


class SaidText(Answer):
    """What the model says."""

    type: Literal["text"] = "text"
    text: str = ""


class Thought(Answer):
    """What the model thinks. Clients send back only what has a signature."""

    type: Literal["thinking"] = "thinking"
    thinking: str = ""
    signature: str = ""


class ToolUse(Answer):
    """A call that is to be made."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: Json = Field(default_factory=dict)


Block = SaidText | Thought | ToolUse
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class ThinkingTokens(Answer):
    """`output_tokens_details`."""

    thinking_tokens: int


class MessageUsage(Answer):
    """Tokens so far. Those of the prompt are what was run and what a kept prefix had."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens
    service_tier: Literal["standard"] = "standard"


class ModelMessage(Answer):
    """The answer as a whole."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Block] = Field(default_factory=list)
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class TokenCount(Answer):
    """Of a prompt."""

    input_tokens: int


class MessageErrorDetail(Answer):
    """The kind of error, and what is wrong."""

    type: str
    message: str


class MessageError(Answer):
    """Every answer that is not the one asked for, and the last event where something went wrong."""

    type: Literal["error"] = "error"
    error: MessageErrorDetail
    request_id: str | None
