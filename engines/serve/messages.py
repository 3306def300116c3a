"""`/v1/messages`: a body of blocks as the chat that it means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal

from glm_trt.engines.serve.chat import PreparedChat, prepare_chat, prompt_of
from glm_trt.engines.serve.protocol.chat import (
    AssistantMessage,
    CalledFunction,
    CallOfHistory,
    ChatBody,
    Function,
    JsonBySchema,
    JsonSchema,
    Message,
    NamedFunction,
    NamedTool,
    SystemMessage,
    Thinking,
    Tool,
    ToolMessage,
    UserMessage,
)
from glm_trt.engines.serve.protocol.common import ApiError, Choosing, Json
from glm_trt.engines.serve.protocol.messages import (
    ChoiceAny,
    ChoiceNone,
    ChoiceTool,
    CustomTool,
    MessagesBody,
    OutputConfig,
    PromptBody,
    TextBlock,
    Texts,
    ThinkingBlock,
    ThinkingOff,
    ThinkingOn,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)
from glm_trt.engines.serve.renaming import renamed
from glm_trt.engines.serve.settings import Served

# Places in a chat's body, and what is there called so; the first that fits.
PLACES = (
    (r"response_format\.json_schema\.schema", "output_config.format.schema"),
    (r"response_format", "output_config.format"),
    (r"(tools(?:\.\d+|\[\d+\]))\.function\.parameters", r"\1.input_schema"),
    (r"(tools(?:\.\d+|\[\d+\]))\.function", r"\1"),
    (r"tool_choice\.function", "tool_choice"),
    (r"stop", "stop_sequences"),
)
Turns = Sequence[tuple[int, Turn]]  # of one side, with their numbers


def prepare_message(body: MessagesBody, served: Served) -> PreparedChat:
    """The prompt, the options and the parser of the chat that the body means.

    Raises
    ------
    ApiError
        As `prepare_chat`; and if messages do not follow one another as they must.
    """
    served.check_model(body.model)
    if isinstance(body.thinking, ThinkingOn) and body.thinking.budget_tokens >= body.max_tokens:
        raise ApiError(
            f"thinking.budget_tokens: expected less than max_tokens ({body.max_tokens}), found "
            f"{body.thinking.budget_tokens}", "thinking.budget_tokens",
        )  # fmt: skip
    given: Json = {
        name: getattr(body, name) for name in Choosing.model_fields if name in body.model_fields_set
    }
    given |= {"stop": body.stop_sequences, "max_completion_tokens": body.max_tokens}
    chat, begun = as_chat(body, **given)
    try:
        return prepare_chat(chat, served, limit="max_tokens", begun=begun)
    except ApiError as error:
        raise renamed(error, PLACES) from None


def count_tokens(body: PromptBody, served: Served) -> int:
    """How many the prompt has, however many the model takes.

    Raises
    ------
    ApiError
        As `prepare_message`, of what the prompt is made of.
    """
    served.check_model(body.model)
    chat, begun = as_chat(body)
    try:
        return len(prompt_of(chat, served, begun)[1])
    except ApiError as error:
        raise renamed(error, PLACES) from None


def as_chat(body: PromptBody, **more: object) -> tuple[ChatBody, str]:
    """The chat that a body means, and the text that its answer goes on from.

    Parameters
    ----------
    more : fields of the chat that its prompt is not made of.

    Raises
    ------
    ApiError
        If messages do not follow one another as they must.
    """
    tools, choice = [_tool(tool) for tool in body.tools or []], body.tool_choice
    one_call = choice is not None and not isinstance(choice, ChoiceNone) and (
        choice.disable_parallel_tool_use
    )  # fmt: skip
    messages, begun = _messages(body)
    return ChatBody(
        **more,  # type: ignore[arg-type]
        model=body.model,
        messages=messages,
        tools=tools or None,
        tool_choice=_choice(choice),
        parallel_tool_calls=False if tools and one_call else None,
        response_format=_format(body.output_config or OutputConfig()),
        thinking=Thinking(type="enabled" if _thinks(body) else "disabled"),
        chat_template=body.chat_template,
        chat_template_kwargs=body.chat_template_kwargs,
    ), begun


def _tool(tool: CustomTool) -> Tool:
    said: Json = {"name": tool.name, "parameters": tool.input_schema}
    for name in ("description", "strict"):  # the prompt has no more
        if getattr(tool, name) is not None:
            said[name] = getattr(tool, name)
    return Tool(type="function", function=Function(**said))


def _choice(choice: ToolChoice | None) -> Literal["auto", "none", "required"] | NamedTool | None:
    if choice is None:
        return None
    if isinstance(choice, ChoiceTool):
        return NamedTool(type="function", function=NamedFunction(name=choice.name))
    return "required" if isinstance(choice, ChoiceAny) else choice.type


def _format(config: OutputConfig) -> JsonBySchema | None:
    if config.format is None:
        return None
    schema = JsonSchema(name="output", schema=config.format.json_schema)
    return JsonBySchema(type="json_schema", json_schema=schema)


def _thinks(body: PromptBody) -> bool:
    return body.thinking is not None and not isinstance(body.thinking, ThinkingOff)


def _messages(body: PromptBody) -> tuple[list[Message], str]:
    """All that is said, as a chat's messages, and what is begun of an answer. Turns of one side in
    a row are one.
    """
    found: list[Message] = []
    if body.system:
        found.append(SystemMessage(role="system", content=_text(body.system)))
    calls: list[str] = []  # that wait for their results
    for role, group in groupby(enumerate(body.messages), key=lambda pair: pair[1].role):
        turns = [*group]
        if role == "user":
            found += _of_user(turns, calls)
            calls = []
        elif role == "assistant":
            turn = _of_assistant(turns)
            calls = [call.id or "" for call in turn.tool_calls or []]
            found.append(turn)
        else:
            texts = [block.text for _, block in _blocks(turns) if isinstance(block, TextBlock)]
            found.append(SystemMessage(role="system", content="".join(texts)))
    if isinstance(found[-1], AssistantMessage):
        return found[:-1], _begun(body, found[-1], len(found) == 1 + bool(body.system))
    return found, ""


def _begun(body: PromptBody, last: AssistantMessage, is_all: bool) -> str:
    """The text of a last message that is the assistant's."""
    text = last.content
    assert isinstance(text, str)
    choice, config = body.tool_choice, body.output_config
    for wrong, why in (
        (is_all, "expected one of the user"),
        (last.tool_calls, "expected the results of its tool_use blocks behind it"),
        (last.reasoning_content, "an answer cannot go on from thinking"),
        (_thinks(body), "an answer that is begun does not go with thinking"),
        (isinstance(choice, ChoiceAny | ChoiceTool),
         f"an answer that is begun does not go with tool_choice {choice and choice.type}"),
        (config and config.format, "an answer that is begun does not go with output_config.format"),
        (text != text.rstrip(), "expected no white space at the end of an answer that is begun"),
    ):  # fmt: skip
        if wrong:
            place = f"messages.{len(body.messages) - 1}"
            raise ApiError(f"{place}: {why}", place)
    return text


def _of_user(turns: Turns, calls: list[str]) -> list[Message]:
    """What calls gave, in the order of the calls, as the prompt does not name them; then text."""
    results: dict[str, ToolMessage] = {}
    texts: list[str] = []
    for place, block in _blocks(turns):
        if isinstance(block, TextBlock):
            texts.append(block.text)
            continue
        assert isinstance(block, ToolResultBlock)
        identity = block.tool_use_id
        if texts:
            raise ApiError(f"{place}: expected each tool_result in front of all text", place)
        if identity not in calls or identity in results:
            which = "two blocks have" if identity in results else "no tool_use just before has"
            raise ApiError(f"{place}.tool_use_id: {which} {identity!r}", f"{place}.tool_use_id")
        results[identity] = _result(block)
    missing = [identity for identity in calls if identity not in results]
    if missing:
        place = f"messages.{turns[0][0]}"
        raise ApiError(
            f"{place}: expected a tool_result for each tool_use just before, found none for "
            f"{missing[0]!r}", place,
        )  # fmt: skip
    said: list[Message] = [results[identity] for identity in calls]
    if texts or not said:
        said.append(UserMessage(role="user", content="".join(texts)))
    return said


def _result(block: ToolResultBlock) -> ToolMessage:
    """Of a call. The prompt has no other way to say that it failed."""
    text = _text(block.content)
    if block.is_error:
        text = f"Error: {text}" if text else "Error"
    return ToolMessage(role="tool", content=text, tool_call_id=block.tool_use_id)


def _of_assistant(turns: Turns) -> AssistantMessage:
    thoughts: list[str] = []
    texts: list[str] = []
    calls: dict[str, CallOfHistory] = {}
    for place, block in _blocks(turns):
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUseBlock):
            if block.id in calls:
                raise ApiError(f"{place}.id: two blocks have {block.id!r}", f"{place}.id")
            function = CalledFunction(name=block.name, arguments=block.input)
            calls[block.id] = CallOfHistory(id=block.id, function=function)
    return AssistantMessage(
        role="assistant",
        reasoning_content="".join(thoughts) or None,
        content="".join(texts),
        tool_calls=[*calls.values()] or None,
    )


def _blocks(turns: Turns) -> Iterator[tuple[str, object]]:
    """All blocks with their places; between the texts of two turns is an empty line."""
    has_text = False
    for i, turn in turns:
        blocks = [TextBlock(type="text", text=turn.content)] if isinstance(turn.content, str) else (
            turn.content
        )  # fmt: skip
        begins = has_text
        for j, block in enumerate(blocks):
            if isinstance(block, TextBlock):
                has_text = True
                if begins:
                    block, begins = block.model_copy(update={"text": f"\n\n{block.text}"}), False
            yield f"messages.{i}.content.{j}", block


def _text(content: Texts) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)
