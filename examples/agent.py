"""An agent: the model calls functions, reads their results, and goes on until it has an answer.

pip install openai
python examples/agent.py "What is 17 plus 25?"

Its functions are harmless: the time, a sum, the names of the files in this folder.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openai import APIError, OpenAI

MOST_FILES = 20
DIM, PLAIN = ("\x1b[2m", "\x1b[0m") if sys.stdout.isatty() else ("", "")


def get_time() -> Any:
    """The current time."""
    return {"time": datetime.datetime.now().strftime("%H:%M")}


def add(a: int, b: int) -> Any:
    """Add two numbers."""
    return {"result": a + b}


def list_files() -> Any:
    """List all files."""
    names = sorted(path.name for path in Path.cwd().iterdir())
    return {"count": len(names), "first": names[:MOST_FILES]}


FUNCTIONS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "get_time": (get_time, {}),
    "add": (add, {"a": {"type": "integer"}, "b": {"type": "integer"}}),
    "list_files": (list_files, {}),
}


def tools() -> list[Any]:
    """The functions as the API wants them described."""
    return [
        {"type": "function", "function": {
            "name": name,
            "description": function.__doc__,
            "parameters": {"type": "object", "properties": properties,
                           "required": list(properties)},
        }}
        for name, (function, properties) in FUNCTIONS.items()
    ]  # fmt: skip


def call(name: str, arguments: str) -> str:
    """A call's result as JSON. What goes wrong is a result, too: the model may do better then."""
    try:
        function, _ = FUNCTIONS[name]
        return json.dumps(function(**json.loads(arguments)))
    except Exception as error:
        return json.dumps({"error": f"{type(error).__name__}: {error}"})


class Cut(Exception):
    """An answer was longer than max_tokens: its calls may be half ones."""


def answer(client: OpenAI, model: str, messages: list[Any], options: dict[str, Any]) -> Any:
    """One answer, printed while it comes; the message that it is.

    Raises
    ------
    Cut
        If it has no end.
    """
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    calls: dict[int, dict[str, Any]] = {}
    stream = client.chat.completions.create(
        model=model, messages=messages, tools=tools(), stream=True, **options
    )
    reason = None
    for chunk in stream:
        reason = chunk.choices[0].finish_reason or reason
        delta = chunk.choices[0].delta
        reasoning = getattr(delta, "reasoning_content", None)
        if reasoning:
            message["reasoning_content"] = message.get("reasoning_content", "") + reasoning
            print(f"{DIM}{reasoning}{PLAIN}", end="", flush=True)
        if delta.content:
            if "reasoning_content" in message and not message["content"]:
                print()
            message["content"] += delta.content
            print(delta.content, end="", flush=True)
        for part in delta.tool_calls or []:
            assert part.function is not None
            if part.index not in calls:  # the first part has the ID and the name
                function = {"name": part.function.name, "arguments": ""}
                calls[part.index] = {"id": part.id, "type": "function", "function": function}
            calls[part.index]["function"]["arguments"] += part.function.arguments or ""
    print()
    if reason == "length":
        raise Cut("the answer was cut: it is longer than --max-tokens")
    if calls:
        message["tool_calls"] = list(calls.values())
    return message


def run(client: OpenAI, question: str, turns: int, options: dict[str, Any]) -> bool:
    """Answer a question. False if that needs more turns."""
    model = client.models.list().data[0].id
    messages: list[Any] = [{"role": "user", "content": question}]
    for _ in range(turns):
        message = answer(client, model, messages, options)
        messages.append(message)
        if "tool_calls" not in message:
            return True
        for made in message["tool_calls"]:
            name, arguments = made["function"]["name"], made["function"]["arguments"]
            result = call(name, arguments)
            print(f"-> {name}({arguments}) = {result}")
            messages.append({"role": "tool", "tool_call_id": made["id"], "content": result})
    return False


def main() -> int:
    """Exit code 1 if there is no answer: too many turns, too long, or refused."""
    parser = argparse.ArgumentParser(description="Ask a model that may call functions.")
    parser.add_argument("question", nargs="?", default="What is 17 plus 25?")
    parser.add_argument("--turns", type=int, default=8, help="answers at most (default: 8)")
    parser.add_argument("--max-tokens", type=int, default=1024, help="of an answer")
    parser.add_argument("--temperature", type=float, help="0 is greedy (default: the model's)")
    options = parser.parse_args()
    client = OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    sampling: dict[str, Any] = {"max_tokens": options.max_tokens}
    if options.temperature is not None:
        sampling["temperature"] = options.temperature
    try:
        if run(client, options.question, options.turns, sampling):
            return 0
        print(f"no answer within {options.turns} turns", file=sys.stderr)
    except (APIError, Cut) as error:
        print(error, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
