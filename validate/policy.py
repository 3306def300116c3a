"""What a deployment asks beyond the contracts, and what it accepts with a reason: a TOML file.

```toml
[[rule]]                       # tighten: fails above 1.02 times what the dtype costs
kind = "sparse_indexed"
ratio = 1.02
reason = "the figures that were signed off"

[[rule]]                       # waive: accepted, and said so in the report
layer = 3
output = "hidden_out"
waive_up_to = 2.5              # or: waive = true
reason = "TICKET-12: fast norm"

[[rule]]                       # the logits of the whole pass; those of "runtime" likewise
block = "end to end"
waive_up_to = 2.5
reason = "TICKET-12: fast norm"

[end_to_end]
max_kl_divergence = 1e-4       # the largest of a token, nats
min_top1 = 0.99
min_top5 = 0.99
max_perplexity_increase = 0.01 # relative
```
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_trt.model.errors import GlmTrtError

# What rules may be about beside blocks: the whole pass, block by block and by the runtime.
END_TO_END, RUNTIME = "end to end", "runtime"
_MATCHES = {"kind": str, "layer": int, "block": str, "output": str}
_ACTIONS = {"ratio": float, "waive": bool, "waive_up_to": float}
_LIMITS = ("max_kl_divergence", "min_top1", "min_top5", "max_perplexity_increase")


class PolicyError(GlmTrtError):
    """A policy file that says nothing sensible: where, what was expected and found."""


@dataclass(frozen=True)
class Rule:
    """Where each of `match` holds: a tighter `ratio`, or a waiver up to one."""

    match: dict[str, Any]
    ratio: float | None
    waive_up_to: float | None
    reason: str

    def matches(self, block: str, kind: str, layer: int | None, output: str) -> bool:
        """Whether the rule is about this output of this block."""
        of = {"block": block, "kind": kind, "layer": layer, "output": output}
        return all(of[name] == value for name, value in self.match.items())


@dataclass(frozen=True)
class Policy:
    """The rules of one file; the later of two that match holds."""

    path: Path | None
    rules: tuple[Rule, ...]
    end_to_end: dict[str, float]

    def ratio(self, block: str, kind: str, layer: int | None, output: str) -> float | None:
        """The tightened ratio of an output, None where the contracts' own holds."""
        found = [r.ratio for r in self.rules if r.ratio and r.matches(block, kind, layer, output)]
        return found[-1] if found else None

    def waived(
        self, block: str, kind: str, layer: int | None, output: str, ratio: float
    ) -> str | None:
        """The reason for which a problem that a limit of `ratio` would allow is accepted."""
        for rule in reversed(self.rules):
            if rule.waive_up_to is not None and rule.matches(block, kind, layer, output):
                return rule.reason if ratio <= rule.waive_up_to else None
        return None

    def end_to_end_problems(self, values: dict[str, Any]) -> list[str]:
        """What the whole pass does not fulfil."""
        problems = []
        text = values["perplexity"]
        found = {
            "max_kl_divergence": values["kl_divergence"]["max"],
            "min_top1": values["top1"],
            "min_top5": values["top5"],
            "max_perplexity_increase": None if text is None or text["found"] is None
            else text["found"] / text["exact"] - 1,
        }  # fmt: skip
        for name, limit in self.end_to_end.items():
            value = found[name]
            if value is None:
                problems.append(f"policy {name} = {limit:g}: nothing finite was measured")
            elif value > limit if name.startswith("max") else value < limit:
                problems.append(f"policy {name} = {limit:g}: found {value:.4g}")
        return problems

    def to_dict(self) -> dict[str, Any] | None:
        """For the report; None without a file."""
        if self.path is None:
            return None
        rules = [
            {"match": rule.match, "ratio": rule.ratio, "reason": rule.reason,
             "waive_up_to": None if rule.waive_up_to == float("inf") else rule.waive_up_to,
             "waive": rule.waive_up_to is not None}
            for rule in self.rules
        ]  # fmt: skip
        return {"file": str(self.path), "rules": rules, "end_to_end": self.end_to_end}


NO_POLICY = Policy(None, (), {})


def read_policy(
    path: Path, blocks: dict[str, tuple[str, int | None]], allowed_ratio: float
) -> Policy:
    """The policy of `path` for blocks name → (kind, layer).

    Raises
    ------
    PolicyError
        If the file is not such TOML, a rule matches no block, has no reason, or loosens a limit
        without being a waiver.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PolicyError(f"{path}: not TOML: {error}") from None
    if unknown := content.keys() - {"rule", "end_to_end"}:
        raise PolicyError(f"{path}: expected [[rule]] and [end_to_end], found {sorted(unknown)[0]}")
    rules = content.get("rule", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise PolicyError(f"{path}: rule: expected tables [[rule]]")
    known = blocks | {name: (name, None) for name in (END_TO_END, RUNTIME)}
    made = [_rule(f"{path}: rule {i + 1}", rule, allowed_ratio) for i, rule in enumerate(rules)]
    for i, rule in enumerate(made):
        about = {name: value for name, value in rule.match.items() if name != "output"}
        anywhere = Rule(about, None, None, "")
        if not any(anywhere.matches(name, *of, "") for name, of in known.items()):
            have = ", ".join(sorted({kind for kind, _ in blocks.values()}))
            raise PolicyError(f"{path}: rule {i + 1}: {about} matches no block; kinds are {have}")
    return Policy(path, tuple(made), _limits(path, content.get("end_to_end", {})))


def _rule(where: str, rule: dict[str, Any], allowed_ratio: float) -> Rule:
    known = _MATCHES | _ACTIONS | {"reason": str}
    for name, value in rule.items():
        if name not in known:
            raise PolicyError(f"{where}: expected one of {', '.join(known)}, found {name}")
        wanted = known[name]
        accepted = (int, float) if wanted is float else (wanted,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
            raise PolicyError(f"{where}: {name}: expected a {wanted.__name__}, found {value!r}")
    match = {name: rule[name] for name in _MATCHES if name in rule}
    actions = [name for name in _ACTIONS if name in rule]
    if not match:
        raise PolicyError(f"{where}: expected one of {', '.join(_MATCHES)}: what it is about")
    if len(actions) != 1 or rule.get("waive") is False:
        raise PolicyError(f"{where}: expected one of ratio, waive = true and waive_up_to")
    if not rule.get("reason", "").strip():
        raise PolicyError(f"{where}: expected a reason, which the report gives")
    ratio = rule.get("ratio")
    if ratio is not None and not 0 < ratio <= allowed_ratio:
        raise PolicyError(
            f"{where}: ratio: expected above 0 and at most {allowed_ratio}, which holds without "
            f"it, found {ratio}; to accept more, waive"
        )
    up_to = float("inf") if "waive" in rule else rule.get("waive_up_to")
    return Rule(match, ratio, up_to, rule["reason"].strip())


def _limits(path: Path, table: Any) -> dict[str, float]:
    if not isinstance(table, dict):
        raise PolicyError(f"{path}: end_to_end: expected a table")
    for name, value in table.items():
        if name not in _LIMITS:
            expected = ", ".join(_LIMITS)
            raise PolicyError(f"{path}: end_to_end: expected {expected}, found {name}")
        if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
            raise PolicyError(f"{path}: end_to_end: {name}: expected a number, found {value!r}")
    return {name: float(value) for name, value in table.items()}
