"""Compiling schemas that may cost much in a process of its own, with limits of time and memory.

A schema of a few bytes can make a compiler of grammars work for minutes: `multipleOf` a large
number, or patterns that are all to hold. The compiler has limits of its own for each step, but not
for the whole.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence

from glm_trt.model.child_python import python
from glm_trt.model.errors import GlmTrtError

MOST_SECONDS, MOST_MEMORY = 1, 1 << 30  # of CPU time; bytes, the Python's own among them
_KEYWORDS = re.compile('"(pattern|patternProperties|multipleOf)"')
_MOST_PLAIN, _MOST_FORMATS = 1 << 13, 8  # bytes, and formats, of what surely costs little

# The child imports nothing of this package, so that it starts at once.
_CHILD = """\
import json, resource, sys
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
seconds, memory, limits, grammars = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
spent = resource.getrusage(resource.RUSAGE_SELF)
most = int(spent.ru_utime + spent.ru_stime) + seconds
resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
tokenizer, limits = LLTokenizer("byte", slices=[]), LLParserLimits(**limits)
for place, grammar in enumerate(grammars):
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        print(json.dumps([place, matcher.get_error()]))
        break
"""


def is_suspicious(schema: str) -> bool:
    """Whether a schema, as JSON, may cost much to compile."""
    many = len(schema) > _MOST_PLAIN or schema.count('"format"') > _MOST_FORMATS
    return many or _KEYWORDS.search(schema) is not None


def check_in_child(grammars: Sequence[tuple[str, str]], limits: Mapping[str, int | bool]) -> None:
    """Compile grammars, each given with where it is from.

    Raises
    ------
    GlmTrtError
        That begins with where: if one is no grammar, or all take more than `MOST_SECONDS` or
        `MOST_MEMORY`.
    """
    work = json.dumps([MOST_SECONDS, MOST_MEMORY, dict(limits), [text for _, text in grammars]])
    try:
        done = subprocess.run(
            python("-c", _CHILD), input=work, capture_output=True, text=True,
            timeout=30 * MOST_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        code, said = None, ""
    else:
        code, said = done.returncode, done.stdout
    if said:
        place, error = json.loads(said)
        raise GlmTrtError(f"{grammars[place][0]}: {plain_error(error)}")
    if code != 0:
        where = ", ".join(dict.fromkeys(where for where, _ in grammars))
        raise GlmTrtError(
            f"{where}: too complex: compiling takes more than {MOST_SECONDS} s or "
            f"{MOST_MEMORY >> 20} MB"
        )


def plain_error(error: str) -> str:
    """What llguidance says, on one line, without what is of use only to it."""
    return " ".join(error.split("\nstate")[0].split())[:500]
