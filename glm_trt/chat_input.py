"""What is typed in a conversation: lines with editing and history, and commands like /help."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator

COMMANDS = {
    "/help": "this list",
    "/clear": "forget the conversation; what --system said stays",
    "/exit": "leave, as Ctrl-D does",
}


def turns(forget: Callable[[], None], quiet: bool) -> Iterator[str]:
    """What the user says, line by line, until /exit or the end of the input.

    On a terminal lines can be edited and called back with the arrow keys. The history is kept in
    memory only: what is said to a model may be private.

    Parameters
    ----------
    forget : called for /clear.
    quiet : no mark to write behind, and no editing.
    """
    marked = sys.stdin.isatty() and not quiet
    if marked:
        _enable_editing()
        _tell("/help lists the commands; Ctrl-C ends an answer")
    while (line := _read(marked)) is not None:
        said = line.strip()
        if not re.fullmatch(r"/[a-z]+", said):
            if said:
                yield said
        elif said == "/exit":
            return
        elif said == "/clear":
            forget()
        elif said == "/help":
            _tell("\n".join(f"{name:8}{what}" for name, what in COMMANDS.items()))
        else:
            _tell(f"{said}: no such command; /help lists those there are")


def _read(marked: bool) -> str | None:
    """The next line; None at the end."""
    try:
        if marked and sys.stdout.isatty():
            return input("> ")  # edited by readline, where that is
        if marked:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line
    except EOFError:
        if marked:
            print(file=sys.stderr)
        return None
    except KeyboardInterrupt:
        if not marked:
            raise
        _tell("\nleave with /exit or Ctrl-D")
        return ""


def _enable_editing() -> None:
    try:
        import readline  # noqa: F401  (`input` uses it once it is loaded)
    except ImportError:
        return  # a Python built without it: plain lines


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
