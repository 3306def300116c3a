"""What an answer must be, as one grammar over all of it: reasoning, content or JSON, calls.

Grammars are llguidance's, which masks tokens by their bytes. GLM's marks (`</think>`,
`<tool_call>`, …) are single tokens in them, and nothing else in an answer is a special token: text
and JSON consist of the others.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from glm_trt.engines.serve.argument_types import kinds
from glm_trt.engines.serve.call_grammar import Function, Json, Rules, function_rule
from glm_trt.engines.serve.schema_guard import check_in_child, is_suspicious, plain_error
from glm_trt.engines.serve.schemas import checked_schema, standalone
from glm_trt.model.errors import GlmTrtError

MARKS = tuple(
    f"<{slash}{name}>"
    for name in ("think", "tool_call", "tool_response", "arg_key", "arg_value")
    for slash in ("", "/")
)
MOST_FUNCTIONS, MOST_BYTES_OF_FUNCTIONS = 128, 1 << 19
# Between the parts of JSON: so much that it may be indented, not so much that a model that has
# lost its way writes spaces for ever.
SPACE = r"[ ]{1,2}|\r?\n[ \t]{0,64}"
# Of one compilation and of one mask: some 20 ms each. States are about 2 kB each.
LIMITS: dict[str, int | bool] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 10_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
RESPONSE_SCHEMA = "response_format.json_schema.schema"


@dataclass(frozen=True)
class AnswerForm:
    """What a request wants of its answer's form.

    Attributes
    ----------
    thinking : the prompt ended with an open `<think>`.
    functions : that may be called.
    tool_choice : "auto" (text, and calls), "none", "required" (one call at least, and nothing
        else), or "function": a call of `function`, and nothing else.
    function : the name, for that.
    parallel_calls : whether there may be several calls.
    response : "text", "json_object", or "json_schema". Where functions may be called too, the
        answer is JSON or calls.
    schema : for "json_schema".
    strict : refuse a schema that the grammar cannot express whole, instead of leaving out what it
        cannot.
    """

    thinking: bool = False
    functions: tuple[Function, ...] = ()
    tool_choice: Literal["auto", "none", "required", "function"] = "auto"
    function: str | None = None
    parallel_calls: bool = True
    response: Literal["text", "json_object", "json_schema"] = "text"
    schema: Any = None
    strict: bool = False


class Grammars:
    """Grammars over one tokenizer; for any thread.

    Parameters
    ----------
    tokenizer : as tokenizer.json, with every token that the model may give.
    vocabulary : how many logits the model has; those beyond the tokenizer's are never allowed.
    eos_token_ids : tokens that end an answer: allowed where the grammar may end. Without any, an
        answer ends where nothing more may follow: it has one call at most, and no form that could
        always go on.
    kept : how many compiled grammars are kept, the latest used.

    Raises
    ------
    GlmTrtError
        If the tokenizer is not one that llguidance reads, or lacks an end token.
    """

    def __init__(
        self, tokenizer: str, vocabulary: int, eos_token_ids: Sequence[int], kept: int = 64
    ) -> None:
        described = json.loads(tokenizer)
        added = described.get("added_tokens", [])
        for token in added:
            # Published tokenizers have the marks as words like any: here text may not hold them.
            is_end = token["id"] in eos_token_ids
            token["special"] = token["special"] or is_end or token["content"] in MARKS
        self._ids = {token["content"]: token["id"] for token in added if token["special"]}
        try:
            ends = [*eos_token_ids]
            if not ends:
                # llguidance needs one: a token of its own, which no model gives.
                ends = [LLTokenizer(tokenizer, eos_token=0, slices=[]).vocab_size]
                described["added_tokens"] = [*added, _end_token(ends[0])]
            self._tokenizer = LLTokenizer(
                json.dumps(described), eos_token=ends, slices=LLTokenizer.json_slices()
            )
        except Exception as error:  # the library raises nothing narrower
            raise GlmTrtError(f"no grammars with this tokenizer: {error}") from None
        self._known = self._tokenizer.vocab_size - (not eos_token_ids)
        self._vocabulary, self._ends = vocabulary, frozenset(eos_token_ids)
        self._kept: OrderedDict[str, _Compiled] = OrderedDict()
        self._most, self._lock = kept, threading.Lock()

    def constraint(self, form: AnswerForm) -> GrammarConstraint | None:
        """What the tokens of one answer must be; None where `form` wants nothing of them.

        Raises
        ------
        GlmTrtError
            If a schema is invalid, not supported, or beyond the limits: the message begins with
            its place in the request.
        """
        is_free = form.response == "text" and not form.functions
        if is_free and form.tool_choice in ("auto", "none"):
            return None
        if not self._ends:
            form = replace(form, parallel_calls=False)  # only an end could say that no more come
        key = _key(form)
        with self._lock:
            compiled = self._kept.get(key)
            if compiled is not None and compiled.is_spent:
                compiled = None
        if compiled is None:
            compiled = self._compile(form)
        with self._lock:
            self._kept[key] = compiled
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return GrammarConstraint(compiled, self._vocabulary, self._ends)

    def _compile(self, form: AnswerForm) -> _Compiled:
        rules = Rules(self._token)
        start = _answer(form, rules)
        if not self._ends and form.response == "json_schema":
            _check_ends_by_itself(form.schema)
        lark = "\n".join([f"start: {start}", "TEXT: /(?s:.)*/", *rules.lines])
        grammars: list[dict[str, Any]] = [{"lark_grammar": lark}]
        grammars += [
            {"name": name, "json_schema": _with_options(of)} for name, of in rules.schemas.items()
        ]
        parts = [_alone(of) for of in rules.schemas.values()]
        # What the whole says nothing of.
        others = [_alone(of) for of in rules.described] + [
            (where, _text({"lark_grammar": f"start: TEXT\nTEXT: {text}"}))
            for text, where in rules.texts
        ]
        costly = [part for part in (*parts, *others) if is_suspicious(part[1])]
        if costly:
            check_in_child(costly, LIMITS)
        self._check([part for part in others if part not in costly])
        matcher = self._matcher(_text(*grammars))
        if not matcher.is_error():
            return _Compiled(matcher, self._known)
        self._check(parts)
        place = "tools" if form.functions else "response_format"
        raise GlmTrtError(f"{place}: {plain_error(matcher.get_error())}")

    def _check(self, parts: list[tuple[str, str]]) -> None:
        """Each alone, so that an error names its place."""
        for where, grammar in parts:
            matcher = self._matcher(grammar)
            if not matcher.is_error():
                matcher.compute_bitmask()
            if matcher.is_error():
                raise GlmTrtError(f"{where}: {plain_error(matcher.get_error())}")

    def _matcher(self, grammar: str) -> LLMatcher:
        return LLMatcher(
            self._tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS)  # type: ignore[arg-type]
        )  # fmt: skip

    def _token(self, name: str) -> str:
        if name not in self._ids:
            place = "response_format" if "think" in name else "tools"
            raise GlmTrtError(
                f"{place}: the tokenizer has no token {name}, which such an answer needs"
            )
        return f"<[{self._ids[name]}]>"


class _Compiled:
    """A compiled grammar. What its lexer found out is shared by all who use it."""

    def __init__(self, matcher: LLMatcher, known: int) -> None:
        self._matcher, self.known = matcher, known  # the tokenizer's tokens
        self.is_spent = False  # a limit was met, so that a fresh one is needed

    def matcher(self) -> LLMatcher:
        """One at the beginning."""
        return self._matcher.deep_copy()


class GrammarConstraint:
    """A `Constraint` by a grammar; one for each request."""

    def __init__(self, compiled: _Compiled, vocabulary: int, ends: frozenset[int]) -> None:
        self._compiled, self._vocabulary, self._ends = compiled, vocabulary, ends
        self._matcher = compiled.matcher()
        self._taken: list[int] = []
        self._has_end = False  # the last that was taken ends it, and the matcher has not seen it
        self._masks: dict[tuple[int, ...], NDArray[np.bool_]] = {}  # by the drafts

    @property
    def ended(self) -> bool:
        """Whether what was taken is whole, and nothing but an end may follow."""
        if self._has_end or self._matcher.is_stopped():
            return True
        ends = sum(end < self._vocabulary for end in self._ends)
        return self._matcher.is_accepting() and np.count_nonzero(self._mask(())) == ends

    def allowed(self, drafts: Sequence[int]) -> NDArray[np.bool_]:
        """Which tokens [vocab] may come behind those that were taken and `drafts`; none behind
        drafts that may not come, or that end it.

        Raises
        ------
        GlmTrtError
            If the grammar has met a limit.
        """
        return self._mask(tuple(drafts))

    def take(self, token: int) -> None:
        """The next token is this. Raises `GlmTrtError` if it may not come."""
        if self._has_end or not self._follows(token):
            raise GlmTrtError(f"token {token} may not come, by the grammar of the answer")
        self._has_end = token in self._ends
        self._taken.append(token)
        self._masks = {key[1:]: of for key, of in self._masks.items() if key[:1] == (token,)}

    def return_to(self, count: int) -> None:
        """Only the first `count` of the tokens that were taken have come."""
        if count == len(self._taken):
            return
        dropped = len(self._taken) - count - self._has_end
        self._has_end = False
        del self._taken[count:]
        self._masks.clear()
        if dropped and not self._matcher.rollback(dropped):
            self._matcher = self._compiled.matcher()
            self._matcher.consume_tokens(self._taken)

    def _follows(self, token: int) -> bool:
        """Whether it does; the matcher has seen it then, unless it is an end."""
        matcher = self._matcher
        if token in self._ends:
            return matcher.is_accepting()
        if matcher.is_stopped() or not 0 <= token < self._compiled.known:
            return False
        if matcher.try_consume_tokens([token]) == 1:
            return True
        if self._mask(())[token]:  # raises as well, if the matcher has stopped for good
            self._compiled.is_spent = True
            raise GlmTrtError("grammar of the answer: too complex to go on")
        return False

    def _mask(self, drafts: tuple[int, ...]) -> NDArray[np.bool_]:
        mask = self._masks.get(drafts)
        if mask is None:
            mask = self._masks[drafts] = self._new_mask(drafts)
        return mask

    def _new_mask(self, drafts: tuple[int, ...]) -> NDArray[np.bool_]:
        mask = np.zeros(self._vocabulary, np.bool_)
        matcher, seen = self._matcher, 0
        if not self._has_end and not self._ends & {*drafts}:
            if drafts and not matcher.is_stopped() and max(drafts) < self._compiled.known:
                seen = matcher.try_consume_tokens([*drafts])
            if seen == len(drafts):
                bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
                count = min(self._compiled.known, self._vocabulary)
                mask[:count] = np.unpackbits(bits, count=count, bitorder="little")
            if seen:
                matcher.rollback(seen)
        if matcher.is_error():
            self._compiled.is_spent = True
            raise GlmTrtError(f"grammar of the answer: {plain_error(matcher.get_error())}")
        mask.flags.writeable = False
        return mask


def _answer(form: AnswerForm, rules: Rules) -> str:
    """The rule of the whole answer."""
    content = "TEXT"
    if form.response == "json_object":
        content = rules.json(Json({"type": "object"}, True, "response_format"))
    elif form.response == "json_schema":
        checked_schema(form.schema, RESPONSE_SCHEMA, form.strict)
        schema = standalone(form.schema, form.schema, RESPONSE_SCHEMA)
        content = rules.json(Json(schema, form.strict, RESPONSE_SCHEMA))
    body = content
    if form.tool_choice != "none" and form.functions:
        calls = f"call{'*' if form.parallel_calls else '?'}"
        if form.tool_choice == "function":
            body = "call"
        elif form.tool_choice == "required":
            body = calls.replace("*", "+").replace("?", "")
        elif form.response == "text":
            body = f"TEXT {calls}"
        else:
            body = f"{content} | {calls.replace('*', '+').replace('?', '')}"
        _write_call(form, rules)
    elif form.tool_choice in ("required", "function"):
        raise GlmTrtError("tool_choice: expected tools to choose from")
    if form.thinking:
        body = f"TEXT {rules.token('</think>')} ({body})"
    return body


def _check_ends_by_itself(schema: Any) -> None:
    """Whether what satisfies it says itself where it ends, which a number does not."""
    if kinds(schema, schema) & {"integer", "number"}:
        raise GlmTrtError(
            f"{RESPONSE_SCHEMA}: a number could always go on, as this model has no end token; "
            "expected a schema of no number, such as an object that has it"
        )


def _write_call(form: AnswerForm, rules: Rules) -> None:
    """The rule `call` of one call of any of the functions that may be called."""
    if len(form.functions) > MOST_FUNCTIONS:
        raise GlmTrtError(f"tools: expected at most {MOST_FUNCTIONS}, found {len(form.functions)}")
    names: list[str] = []
    wanted: list[str] = []
    size = 0
    for i, function in enumerate(form.functions):
        if function.name in names:
            raise GlmTrtError(f"tools[{i}].function.name: {function.name!r} is there twice")
        names.append(function.name)
        where = f"tools[{i}].function.parameters"
        if isinstance(function.parameters, dict) and function.parameters:
            # Said or not, they are an object.
            function = replace(function, parameters={"type": "object", **function.parameters})
        if function.parameters is not None:
            size += len(checked_schema(function.parameters, where, function.strict))
        if size > MOST_BYTES_OF_FUNCTIONS:
            raise GlmTrtError(
                f"tools: expected at most {MOST_BYTES_OF_FUNCTIONS} bytes of parameters"
            )
        if form.tool_choice != "function" or function.name == form.function:
            function_rule(rules, f"f{i}", function, where)
            wanted.append(f"f{i}")
    if not wanted:
        raise GlmTrtError(f"tool_choice.function.name: {form.function!r} is none of the tools")
    begin, end = rules.token("<tool_call>"), rules.token("</tool_call>")
    rules.lines.append(f"call: {begin} ({' | '.join(wanted)}) {end}")


def _end_token(number: int) -> dict[str, Any]:
    """The entry in tokenizer.json of a token that ends an answer."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": "<|end of the answer|>", "special": True, **flags}


def _with_options(of: Json) -> dict[str, Any]:
    # The key of llguidance's options, which no caller may set.
    return {**of.schema, "x-guidance": {"whitespace_pattern": SPACE, "lenient": not of.strict}}


def _alone(of: Json) -> tuple[str, str]:
    return of.where, _text({"json_schema": _with_options(of)})


def _text(*grammars: dict[str, Any]) -> str:
    return json.dumps({"grammars": grammars})


def _key(form: AnswerForm) -> str:
    """What two forms share whose grammars are the same."""
    try:
        return json.dumps(form, allow_nan=False, default=vars)
    except (TypeError, ValueError, RecursionError):
        _answer(form, Rules(lambda _: "TEXT"))  # says where
        raise
