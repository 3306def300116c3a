"""Write the task's questions: which of four pieces of source code goes on where a text stops.

    python make_task.py [--questions N] FILE.py ... > next_lines.jsonl

The wrong answers are from other places of the same files. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

CHOICES, CONTEXT_LINES, ANSWER_LINES = 4, 8, 2


def main() -> None:
    """One question a line, of a fixed seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.py")
    parser.add_argument("--questions", type=int, default=100, metavar="N")
    options = parser.parse_args()
    draw = random.Random(0)
    lines = [
        line for file in options.files for line in file.read_text().splitlines() if line.strip()
    ]
    places = range(CONTEXT_LINES, len(lines) - ANSWER_LINES)

    def piece(place: int) -> str:
        return "\n".join(lines[place : place + ANSWER_LINES])

    for place in draw.sample(places, options.questions):
        others = draw.sample([p for p in places if abs(p - place) > CONTEXT_LINES], CHOICES - 1)
        label = draw.randrange(CHOICES)
        choices = [piece(other) for other in others]
        choices.insert(label, piece(place))
        context = "\n".join(lines[place - CONTEXT_LINES : place]) + "\n"
        print(json.dumps({"context": context, "choices": choices, "label": label}))


if __name__ == "__main__":
    main()
