"""`/v1/chat/completions`: a body to prompt, options and parsers; events to answers and chunks."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from glm_trt.engines.python.request import GenerateOptions
from glm_trt.engines.serve.answer_parser import (
    AnswerParser,
    BadCall,
    CallArguments,
    CallBegin,
    Content,
    Piece,
    Reasoning,
    opens_reasoning,
)
from glm_trt.engines.serve.answers import Answers, Event
from glm_trt.engines.serve.call_grammar import Function
from glm_trt.engines.serve.grammar import RESPONSE_SCHEMA, AnswerForm, GrammarConstraint
from glm_trt.engines.serve.logprobs import Logprobs
from glm_trt.engines.serve.protocol.chat import (
    ChatBody,
    ChatChoice,
    ChatCompletion,
    ChatMessage,
    ChoiceLogprobs,
    FunctionCall,
    JsonBySchema,
    JsonObject,
    Message,
    NamedTool,
    TokenLogprob,
    Tool,
    ToolCall,
)
from glm_trt.engines.serve.protocol.common import KEEP_ALIVE, ApiError, Json
from glm_trt.engines.serve.schemas import check_depth
from glm_trt.engines.serve.settings import Served, options_of, stops_of
from glm_trt.model.errors import GlmTrtError

# What `Text.chat` has names for.
NOT_VARIABLES = {
    "messages", "tools", "add_generation_prompt", "chat_template", "template_name", "self"
}  # fmt: skip


@dataclass(frozen=True)
class PreparedChat:
    """What a body asks of the engine."""

    prompt: list[int]
    options: list[GenerateOptions]
    parsers: list[AnswerParser]


def prepare_chat(
    body: ChatBody, served: Served, limit: str = "max_completion_tokens", begun: str = ""
) -> PreparedChat:
    """The prompt, and options and a parser for each choice.

    Parameters
    ----------
    limit : what the caller knows `max_completion_tokens` as.
    begun : text that the answer goes on from.

    Raises
    ------
    ApiError
        If fields contradict each other, are out of range, or the prompt does not fit.
    """
    tools, prompt = prompt_of(body, served, begun)
    thinking = opens_reasoning(served.text, prompt)  # as the template has it
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    name = "max_tokens" if body.max_completion_tokens is None else limit
    most_new = served.room(prompt, wanted, name)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    options = options_of(
        body, served, most_new, greedy=body.do_sample is False,
        logprobs=logprobs, prompt_logprobs=body.prompt_logprobs,
    )  # fmt: skip
    form = _form(body, thinking)
    constraints = [_constraint(served, form) for _ in options]
    stops = stops_of(body, served.limits)
    return PreparedChat(
        prompt,
        [replace(x, constraint=y) for x, y in zip(options, constraints, strict=True)],
        [
            # Without tools nothing is called: marks of a call are content then.
            AnswerParser(served.text, tools, thinking=thinking, stop=stops, calls=bool(tools))
            for _ in options
        ],
    )


def prompt_of(body: ChatBody, served: Served, begun: str = "") -> tuple[list[Json], list[int]]:
    """The tools that the prompt lists, and its IDs, with what is begun of the answer.

    Raises
    ------
    ApiError
        If the model is another one, fields contradict each other, or the template refuses them.
    """
    served.check_model(body.model)
    _check_contradictions(body)
    if isinstance(body.response_format, JsonBySchema):
        schema = body.response_format.json_schema.json_schema
        _check_size(schema, RESPONSE_SCHEMA, served.limits.schema_bytes)
    tools = _tools(body, served)
    prompt = render(body, served, tools, wants_thinking(body))
    return tools, prompt + (served.text.encode(begun, with_prefix=False) if begun else [])


def _form(body: ChatBody, thinking: bool) -> AnswerForm:
    """What the answer must be. Without a wish of that kind, and without tools, anything."""
    choice, wanted = body.tool_choice or "auto", body.response_format
    functions = tuple(
        Function(tool.function.name, tool.function.parameters, bool(tool.function.strict))
        for tool in body.tools or []
    )
    form = AnswerForm(
        thinking=thinking,
        functions=functions,
        tool_choice="function" if isinstance(choice, NamedTool) else choice,
        function=choice.function.name if isinstance(choice, NamedTool) else None,
        parallel_calls=body.parallel_tool_calls is not False,
    )  # fmt: skip
    if isinstance(wanted, JsonObject):
        return replace(form, response="json_object")
    if isinstance(wanted, JsonBySchema):
        schema = wanted.json_schema
        return replace(
            form, response="json_schema", schema=schema.json_schema, strict=bool(schema.strict)
        )
    return form


def _constraint(served: Served, form: AnswerForm) -> GrammarConstraint | None:
    try:
        return served.grammars.constraint(form)
    except GlmTrtError as error:
        place, _, _ = str(error).partition(": ")
        raise ApiError(str(error), place.replace("[", ".").replace("]", "")) from None


def _check_contradictions(body: ChatBody) -> None:
    def differ(first: Any, second: Any) -> bool:
        return first is not None and second is not None and first != second

    choice, limit = body.tool_choice, body.max_completion_tokens
    is_json = body.response_format is not None and body.response_format.type != "text"
    for wrong, name, why in (
        (differ(body.max_tokens, limit), "max_completion_tokens", "differs from max_tokens"),
        (body.top_logprobs is not None and not body.logprobs, "top_logprobs",
         "goes with logprobs: true only"),
        (body.prompt_logprobs is not None and body.stream, "prompt_logprobs",
         "does not go with stream: true"),
        (choice not in (None, "none", "auto") and not body.tools, "tool_choice",
         "asks for a call, and there are no tools"),
        (is_json and choice not in (None, "none", "auto"), "response_format",
         "asks for JSON where tool_choice asks for a call"),
        (body.parallel_tool_calls is not None and not body.tools, "parallel_tool_calls",
         "is of tools, and there are none"),
        (body.thinking is not None and differ(body.clear_thinking, body.thinking.clear_thinking),
         "clear_thinking", "differs from thinking.clear_thinking"),
        (body.thinking is not None and body.reasoning_effort is not None
         and differ(body.thinking.type == "enabled", _is_effort(body.reasoning_effort)),
         "reasoning_effort", f"contradicts thinking.type {body.thinking and body.thinking.type!r}"),
    ):  # fmt: skip
        if wrong:
            raise ApiError(f"{name}: {why}", name)


def _is_effort(effort: str) -> bool:
    return effort not in ("none", "minimal")


def wants_thinking(body: ChatBody) -> bool:
    """Whether the answer begins with reasoning. On unless turned off, as z.ai's API has it."""
    if body.thinking is not None:
        return body.thinking.type == "enabled"
    if body.reasoning_effort is not None:
        return _is_effort(body.reasoning_effort)
    wanted = (body.chat_template_kwargs or {}).get("enable_thinking", True)
    if not isinstance(wanted, bool):
        raise ApiError("expected true or false", "chat_template_kwargs.enable_thinking")
    return wanted


def _tools(body: ChatBody, served: Served) -> list[Json]:
    """What the prompt lists, none with `tool_choice` none."""
    tools, limits = body.tools or [], served.limits
    if len(tools) > limits.tools:
        raise ApiError(f"expected {limits.tools} at most, found {len(tools)}", "tools")
    names: set[str] = set()
    for i, tool in enumerate(tools):
        _check_tool(tool, i, names, limits.schema_bytes)
    if isinstance(body.tool_choice, NamedTool) and body.tool_choice.function.name not in names:
        raise ApiError(
            f"no tool has the name {body.tool_choice.function.name!r}", "tool_choice.function.name"
        )
    if body.tool_choice == "none":
        return []
    return [tool.model_dump(exclude_unset=True) for tool in tools]


def _check_tool(tool: Tool, number: int, names: set[str], most_bytes: int) -> None:
    place, function = f"tools.{number}.function", tool.function
    if function.name in names:
        raise ApiError(f"two tools have the name {function.name!r}", f"{place}.name")
    names.add(function.name)
    _check_size(function.parameters, f"{place}.parameters", most_bytes)


def _check_size(schema: Any, place: str, most_bytes: int) -> None:
    """Before it becomes a part of the prompt, or of a grammar."""
    _check_depth(schema, place)
    size = len(json.dumps(schema, ensure_ascii=False).encode())
    if size > most_bytes:
        raise ApiError(f"{place}: expected {most_bytes} bytes at most, found {size}", place)


def _check_depth(value: Any, place: str) -> None:
    try:
        check_depth(value, place)
    except GlmTrtError as error:
        raise ApiError(str(error), place) from None


def render(
    body: Any, served: Served, tools: Sequence[Json], thinking: bool
) -> list[int]:  # a ChatBody or what has its messages
    """The prompt's IDs, by the checkpoint's chat template.

    Raises
    ------
    ApiError
        If there is no template of the name that is asked for, or it refuses the messages.
    """
    variables = {**(getattr(body, "chat_template_kwargs", None) or {})}
    if taken := NOT_VARIABLES & variables.keys():
        raise ApiError(f"expected other names than {min(taken)}", "chat_template_kwargs")
    _check_depth(variables, "chat_template_kwargs")
    have = served.text.templates.by_name
    if body.chat_template is not None and body.chat_template not in have:
        raise ApiError(
            "expected the name of a chat template of this model, not a template: "
            f"{', '.join(sorted(have)) or 'there is none'}; found {body.chat_template[:64]!r}",
            "chat_template",
        )
    cleared = body.thinking.clear_thinking if body.thinking is not None else None
    if cleared is None:
        cleared = getattr(body, "clear_thinking", None)
    if cleared is not None:
        variables["clear_thinking"] = cleared
    variables["enable_thinking"] = thinking
    if tools:
        variables["tools"] = list(tools)
    try:
        messages = [_plain(message) for message in body.messages]
        return served.text.chat(messages, body.chat_template, **variables)
    except GlmTrtError as error:
        raise ApiError(str(error), "messages") from None


def _plain(message: Message) -> Json:
    """A message for `Text.chat`, which brings it into the form that templates know."""
    found = message.model_dump(exclude_none=True)
    return found | {"role": "system"} if message.role == "developer" else found


def new_call_id() -> str:
    """Of a call that is to be answered."""
    return f"call_{uuid.uuid4().hex[:24]}"


class ChatWriter:
    """Events of a chat as chunks, or as one answer."""

    ends_with_done, keep_alive = True, KEEP_ALIVE

    def __init__(self, body: ChatBody, served: Served, identity: str) -> None:
        self._body, self._served = body, served
        self._logprobs = Logprobs(served) if body.logprobs else None
        self._base: Json = {"id": identity, "created": int(time.time()), "model": served.name}

    def opening(self, answers: Answers) -> list[Json]:
        """The first chunk of each choice."""
        return [
            self._chunk([self._choice(i, {"role": "assistant", "content": ""})])
            for i in range(self._body.n)
        ]

    def chunks(self, event: Event) -> list[Json]:
        """What an event adds, nothing if that is nothing."""
        deltas = [x for x in (self._delta(event.number, piece) for piece in event.pieces) if x]
        choices = [self._choice(event.number, delta) for delta in deltas]
        if self._logprobs is not None and event.token is not None:
            if not choices:
                choices = [self._choice(event.number, {"content": ""})]
            entry = self._logprobs.of(event.token).model_dump()
            choices[0]["logprobs"] = {"content": [entry], "refusal": None}
        if event.finish_reason is not None:
            choices.append(self._choice(event.number, {}, event.finish_reason))
        return [self._chunk([choice]) for choice in choices]

    def closing(self, answers: Answers) -> list[Json]:
        """Tokens, if they are wanted."""
        options = self._body.stream_options
        if options is None or not options.include_usage:
            return []
        return [self._chunk([]) | {"usage": answers.usage().model_dump()}]

    def failing(self, answers: Answers, error: ApiError) -> list[Json]:
        """What went wrong."""
        return [error.body()]

    def _choice(self, number: int, delta: Json, finish_reason: str | None = None) -> Json:
        found: Json = {"index": number, "delta": delta, "finish_reason": finish_reason}
        if self._logprobs is not None:
            found["logprobs"] = None
        return found

    def _chunk(self, choices: list[Json]) -> Json:
        found = {**self._base, "object": "chat.completion.chunk", "choices": choices}
        options = self._body.stream_options
        if options is not None and options.include_usage:
            found["usage"] = None
        return found

    def _delta(self, number: int, piece: Piece) -> Json | None:
        if isinstance(piece, Content):
            return {"content": piece.text}
        if isinstance(piece, Reasoning):
            return {"reasoning_content": piece.text}
        if isinstance(piece, CallBegin):
            function = {"name": piece.name, "arguments": ""}
            call = {"index": piece.index, "id": new_call_id(), "type": "function"}
            return {"tool_calls": [call | {"function": function}]}
        if isinstance(piece, CallArguments):
            arguments = {"arguments": piece.text}
            return {"tool_calls": [{"index": piece.index, "function": arguments}]}
        if isinstance(piece, BadCall):
            return {"content": piece.text}  # so that nothing of an answer is lost
        return None

    async def whole(self, answers: Answers) -> ChatCompletion:
        """Everything at once.

        Raises
        ------
        BaseException
            What ended a choice.
        """
        builders = [_Message() for _ in answers.jobs]
        async for event in answers:
            if event.error is not None:
                raise event.error
            builder = builders[event.number]
            builder.add(event)
            if self._logprobs is not None and event.token is not None:
                builder.logprobs.append(self._logprobs.of(event.token))
        choices = [
            ChatChoice(
                index=i,
                message=builder.message(),
                logprobs=None if self._logprobs is None
                else ChoiceLogprobs(content=builder.logprobs),
                finish_reason=builder.finish_reason,  # type: ignore[arg-type]
            )
            for i, builder in enumerate(builders)
        ]  # fmt: skip
        prompt = Logprobs(self._served).of_prompt(answers.request(0))
        return ChatCompletion(
            **self._base, choices=choices, usage=answers.usage(), prompt_logprobs=prompt
        )


class _Message:
    """One choice, piece by piece."""

    def __init__(self) -> None:
        self.content, self.reasoning = "", ""
        self.calls: list[tuple[str, list[str]]] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: str | None = None

    def add(self, event: Event) -> None:
        """One more event."""
        for piece in event.pieces:
            if isinstance(piece, Content | BadCall):
                self.content += piece.text
            elif isinstance(piece, Reasoning):
                self.reasoning += piece.text
            elif isinstance(piece, CallBegin):
                self.calls.append((piece.name, []))
            elif isinstance(piece, CallArguments):
                self.calls[piece.index][1].append(piece.text)
        self.finish_reason = event.finish_reason

    def message(self) -> ChatMessage:
        """All of it; without content where there are calls alone."""
        calls = [
            ToolCall(id=new_call_id(), function=FunctionCall(name=name, arguments="".join(parts)))
            for name, parts in self.calls
        ]
        return ChatMessage(
            content=self.content if self.content or not calls else None,
            reasoning_content=self.reasoning or None,
            tool_calls=calls or None,
        )
