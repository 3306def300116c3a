"""Anthropic's Python client: a whole answer, a stream with thoughts, calls up to an answer.

pip install anthropic
python examples/anthropic_client.py
"""

from __future__ import annotations

import json
import os
from typing import Any

import anthropic

QUESTION: list[Any] = [{"role": "user", "content": "What is 17 plus 25?"}]
ADD: Any = {
    "name": "add",
    "description": "Add two numbers.",
    "input_schema": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}
# GLM-5.1 knows no budget, but thinks as long as it wants to.
THINKING: Any = {"type": "adaptive"}
MOST_TURNS = 4


def whole(client: anthropic.Anthropic, model: str) -> None:
    """Everything at once; without `thinking` it answers without any."""
    answer = client.messages.create(model=model, messages=QUESTION, max_tokens=64)
    print("".join(block.text for block in answer.content if block.type == "text"))
    print("ended by:", answer.stop_reason)
    print("tokens:", answer.usage.input_tokens, "+", answer.usage.output_tokens)


def streamed(client: anthropic.Anthropic, model: str) -> None:
    """Piece by piece; the same each time, as a seed is given."""
    with client.messages.stream(
        model=model, messages=QUESTION, max_tokens=64, thinking=THINKING, extra_body={"seed": 1}
    ) as stream:
        for event in stream:
            if event.type == "thinking":
                print(event.thinking, end="", flush=True)
            elif event.type == "text":
                print(event.text, end="", flush=True)
        print("\nended by:", stream.get_final_message().stop_reason)


def tools(client: anthropic.Anthropic, model: str) -> None:
    """The first turn has to call; its blocks go back with the results, thoughts and all."""
    messages, choice = [*QUESTION], {"type": "any"}
    for _ in range(MOST_TURNS):
        answer = client.messages.create(
            model=model, messages=messages, max_tokens=256, thinking=THINKING, tools=[ADD],
            tool_choice=choice, extra_body={"temperature": 0},
        )  # type: ignore[call-overload]  # fmt: skip
        calls = [block for block in answer.content if block.type == "tool_use"]
        if answer.stop_reason != "tool_use":
            print("".join(block.text for block in answer.content if block.type == "text"))
            return
        results = []
        for call in calls:
            result = json.dumps({"result": call.input["a"] + call.input["b"]})
            print(f"-> add({json.dumps(call.input)}) = {result}")
            results.append({"type": "tool_result", "tool_use_id": call.id, "content": result})
        messages.append({"role": "assistant", "content": answer.content})
        messages.append({"role": "user", "content": results})
        choice = {"type": "auto"}
    print(f"no answer within {MOST_TURNS} turns")


def main() -> None:
    """All of them, with the model that the server has."""
    client = anthropic.Anthropic(
        base_url=os.environ.get("ANTHROPIC_BASE_URL", "http://127.0.0.1:8000"),
        api_key=os.environ.get("ANTHROPIC_API_KEY", "none"),
    )
    model = client.models.list().data[0].id
    for example in (whole, streamed, tools):
        print(f"\n== {example.__name__}")
        try:
            example(client, model)
        except anthropic.BadRequestError as error:  # this model has no tokens for calls, say
            print("refused:", error.body["error"]["message"])  # type: ignore[index, call-overload]


if __name__ == "__main__":
    main()
