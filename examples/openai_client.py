"""OpenAI's Python client: a whole answer, a stream, JSON of a schema, log-probabilities.

pip install openai
python examples/openai_client.py
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

from openai import OpenAI

QUESTION: list[Any] = [{"role": "user", "content": "What is 17 plus 25?"}]
# z.ai's field: no reasoning before the answer.
AT_ONCE = {"thinking": {"type": "disabled"}}
VERDICT = {
    "type": "object",
    "properties": {
        "verdict": {"enum": ["yes", "no", "unknown"]},
        "certainty": {"type": "integer", "minimum": 0, "maximum": 100},
    },
    "required": ["verdict", "certainty"],
    "additionalProperties": False,
}


def whole(client: OpenAI, model: str) -> None:
    """Everything at once."""
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=64)
    choice = answer.choices[0]
    print("reasoning:", getattr(choice.message, "reasoning_content", None))
    print("content:", choice.message.content)
    print("ended by:", choice.finish_reason)
    assert answer.usage is not None
    print("tokens:", answer.usage.prompt_tokens, "+", answer.usage.completion_tokens)


def streamed(client: OpenAI, model: str) -> None:
    """Piece by piece, the same each time: a seed is given."""
    stream = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=64, seed=1, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    for chunk in stream:
        if chunk.choices:
            delta = chunk.choices[0].delta
            print(getattr(delta, "reasoning_content", None) or delta.content or "", end="",
                  flush=True)  # fmt: skip
        if chunk.usage is not None:
            print("\ntokens:", chunk.usage.completion_tokens)


def structured(client: OpenAI, model: str) -> None:
    """JSON that has the form of the schema, whatever the model would rather say."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Is the sky blue? How sure are you, in per cent?"}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "verdict", "schema": VERDICT, "strict": True},
        },
        extra_body=AT_ONCE,
    )
    print(json.loads(answer.choices[0].message.content or ""))


def log_probabilities(client: OpenAI, model: str) -> None:
    """How probable each token was, and what else it might have been."""
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=5, temperature=0, logprobs=True,
        top_logprobs=3, extra_body=AT_ONCE,
    )  # fmt: skip
    logprobs = answer.choices[0].logprobs
    for token in (logprobs and logprobs.content) or []:
        others = ", ".join(f"{x.token!r} {math.exp(x.logprob):.0%}" for x in token.top_logprobs)
        print(f"{token.token!r}: {others}")


def main() -> None:
    """All of them, with the model that the server has."""
    client = OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    model = client.models.list().data[0].id
    for example in (whole, streamed, structured, log_probabilities):
        print(f"\n== {example.__name__}")
        example(client, model)


if __name__ == "__main__":
    main()
