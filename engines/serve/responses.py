"""`/v1/responses`: a body of items as the chat that it means."""

from __future__ import annotations

from glm_trt.engines.python.messages import arguments_of
from glm_trt.engines.serve.chat import PreparedChat, prepare_chat
from glm_trt.engines.serve.protocol.chat import (
    AssistantMessage,
    CalledFunction,
    CallOfHistory,
    ChatBody,
    Function,
    JsonBySchema,
    JsonObject,
    JsonSchema,
    Message,
    NamedFunction,
    NamedTool,
    PlainText,
    SystemMessage,
    Tool,
    ToolMessage,
    UserMessage,
)
from glm_trt.engines.serve.protocol.common import ApiError, Drawing, Json
from glm_trt.engines.serve.protocol.responses import (
    LOGPROBS,
    FunctionTool,
    InputCall,
    InputCallOutput,
    InputMessage,
    InputReasoning,
    ItemContent,
    ItemReference,
    NamedFunctionTool,
    ReasoningOptions,
    ResponsesBody,
    SchemaFormat,
    TextOptions,
)
from glm_trt.engines.serve.renaming import renamed
from glm_trt.engines.serve.settings import Served
from glm_trt.model.errors import GlmTrtError

NEEDS_STORE = ("store", "background", "previous_response_id", "conversation", "prompt")
# Places in a chat's body, and what is there called so; the first that fits.
PLACES = (
    (r"response_format\.json_schema\.schema", "text.format.schema"),
    (r"response_format", "text.format"),
    (r"(tools(?:\.\d+|\[\d+\]))\.function", r"\1"),
    (r"tool_choice\.function", "tool_choice"),
    (r"messages", "input"),
)


def prepare_response(body: ResponsesBody, served: Served) -> PreparedChat:
    """The prompt, the options and the parser of the chat that the body means.

    Raises
    ------
    ApiError
        As `prepare_chat`; and if something needs what was stored.
    """
    _check(body)
    try:
        return prepare_chat(as_chat(body), served, limit="max_output_tokens")
    except ApiError as error:
        raise renamed(error, PLACES) from None


def _check(body: ResponsesBody) -> None:
    for name in NEEDS_STORE:
        if getattr(body, name) not in (None, False):
            raise ApiError(
                f"{name}: nothing is stored here; give all items as input, with store: false",
                name, code="unsupported_parameter",
            )  # fmt: skip
    if body.top_logprobs and not wants_logprobs(body):
        raise ApiError(f"top_logprobs: goes with include: [{LOGPROBS!r}] only", "top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options: goes with stream: true only", "stream_options")


def wants_logprobs(body: ResponsesBody) -> bool:
    """Whether the tokens of messages are to have them."""
    return LOGPROBS in (body.include or [])


def as_chat(body: ResponsesBody) -> ChatBody:
    """The chat that a body means.

    Raises
    ------
    ApiError
        If an item refers to what is not there.
    """
    given: Json = {
        name: getattr(body, name) for name in Drawing.model_fields if name in body.model_fields_set
    }
    reasoning, choice = body.reasoning or ReasoningOptions(), body.tool_choice
    if reasoning.context not in (None, "auto"):
        given["clear_thinking"] = reasoning.context == "current_turn"
    tools = [_tool(tool) for tool in body.tools or []]
    return ChatBody(
        **given,
        messages=_messages(body),
        max_completion_tokens=body.max_output_tokens,
        logprobs=wants_logprobs(body),
        top_logprobs=body.top_logprobs if wants_logprobs(body) else None,
        tools=tools or None,
        tool_choice=NamedTool(type="function", function=NamedFunction(name=choice.name))
        if isinstance(choice, NamedFunctionTool) else choice,
        # Clients say it always; without tools it asks for nothing.
        parallel_tool_calls=body.parallel_tool_calls if tools else None,
        response_format=_format(body.text or TextOptions()),
        reasoning_effort=reasoning.effort,
        chat_template=body.chat_template,
        chat_template_kwargs=body.chat_template_kwargs,
    )  # fmt: skip


def _tool(tool: FunctionTool) -> Tool:
    said = tool.model_dump(exclude_unset=True, exclude={"type"})  # the prompt has no more
    return Tool(type="function", function=Function(**said))


def _format(text: TextOptions) -> PlainText | JsonObject | JsonBySchema | None:
    form = text.format
    if not isinstance(form, SchemaFormat):
        return form
    schema = JsonSchema(name=form.name, schema=form.json_schema, strict=form.strict)
    return JsonBySchema(type="json_schema", json_schema=schema)


def _messages(body: ResponsesBody) -> list[Message]:
    """The items as a chat's messages."""
    first: list[Message] = []
    if body.instructions is not None:
        first.append(SystemMessage(role="system", content=body.instructions))
    if isinstance(body.input, str):
        return [*first, UserMessage(role="user", content=body.input)]
    found: list[Message | _Turn] = [*first]
    calls: set[str] = set()
    turn: _Turn | None = None
    for i, item in enumerate(body.input):
        place = f"input.{i}"
        if isinstance(item, ItemReference):
            raise ApiError(f"{place}: nothing is stored here; give the item itself", place)
        if isinstance(item, InputReasoning | InputCall) or (
            isinstance(item, InputMessage) and item.role == "assistant"
        ):
            if turn is None or not turn.takes(item):
                turn = _Turn()
                found.append(turn)
            turn.add(item, place)
            if isinstance(item, InputCall):
                calls.add(item.call_id)
        else:
            turn = None
            found.append(_message(item, calls, place))
    return [x.message() if isinstance(x, _Turn) else x for x in found]


def _message(item: InputMessage | InputCallOutput, calls: set[str], place: str) -> Message:
    """What is said to the model, which made `calls` before."""
    if isinstance(item, InputCallOutput):
        if item.call_id not in calls:
            name = f"{place}.call_id"
            raise ApiError(f"{name}: no function_call before it has {item.call_id!r}", name)
        return ToolMessage(role="tool", content=_text(item.output), tool_call_id=item.call_id)
    text = _text(item.content)
    if item.role == "user":
        return UserMessage(role="user", content=text)
    assert item.role != "assistant"
    return SystemMessage(role=item.role, content=text)


class _Turn:
    """Items of the model that are one message of a chat: its reasoning, its text, its calls."""

    def __init__(self) -> None:
        self._thoughts: list[str] = []
        self._texts: list[str] = []
        self._calls: list[CallOfHistory] = []
        self._latest: object = None

    def takes(self, item: object) -> bool:
        """Whether `item` goes on with it. A second message without a call between, and reasoning
        behind what was said, are turns of their own.
        """
        if isinstance(item, InputReasoning):
            return isinstance(self._latest, InputReasoning)
        return not (isinstance(item, InputMessage) and isinstance(self._latest, InputMessage))

    def add(self, item: InputMessage | InputReasoning | InputCall, place: str) -> None:
        """One more item, which is at `place` in the body; raises `ApiError` if it is a call
        without arguments that are an object.
        """
        self._latest = item
        if isinstance(item, InputReasoning):
            self._thoughts += [part.text for part in item.content or item.summary]
        elif isinstance(item, InputMessage):
            self._texts.append(_text(item.content))
        else:
            name = f"{place}.arguments"
            try:
                arguments = arguments_of(item.arguments, name)
            except GlmTrtError as error:
                raise ApiError(str(error), name) from None
            function = CalledFunction(name=item.name, arguments=arguments)
            self._calls.append(CallOfHistory(id=item.call_id, function=function))

    def message(self) -> AssistantMessage:
        """All of it."""
        return AssistantMessage(
            role="assistant",
            reasoning_content="".join(self._thoughts) or None,
            content="".join(self._texts),
            tool_calls=self._calls or None,
        )


def _text(content: ItemContent) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
