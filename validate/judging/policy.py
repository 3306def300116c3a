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

[[rule]]                       # waive what is not a matter of degree: by its name alone
block = "layer.3"
output = "index_keys_out"
problem = "missing"
waive = true
reason = "TICKET-13: nothing reads it behind the last indexer"

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

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from glm_trt.model.config import ModelConfig
from glm_trt.model.errors import GlmTrtError
from glm_trt.model.states import layer_states
from glm_trt.validate.judging.problem_kinds import MEASURED, ProblemKind

# What rules may be about beside blocks: the whole pass, block by block and by the runtime.
END_TO_END, RUNTIME = "end to end", "runtime"
WHOLE = (END_TO_END, RUNTIME)
# The "output" of what is wrong with a block's graph itself.
GRAPH = "graph"
_MATCHES = {"kind": str, "layer": int, "block": str, "output": str}
_NARROWS = {"problem": str}
_ACTIONS = {"ratio": float, "waive": bool, "waive_up_to": float}
_LIMITS = ("max_kl_divergence", "min_top1", "min_top5", "max_perplexity_increase")
_SHARES = ("min_top1", "min_top5")
_WAIVABLE = [kind.value for kind in ProblemKind if kind is not ProblemKind.LIMIT]
_KNOWN_SHOWN = 40


class PolicyError(GlmTrtError):
    """A policy file that says nothing sensible: where, what was expected and found."""


class Target(NamedTuple):
    """What rules may be about in one block: its kind, its layer, its outputs, graph and weights."""

    kind: str
    layer: int | None
    outputs: tuple[str, ...]


class Where(NamedTuple):
    """What a problem is in, by the names that rules match."""

    block: str
    kind: str
    layer: int | None
    output: str


def target_of(
    config: ModelConfig, kind: str, layer: int | None, weights: tuple[str, ...]
) -> Target:
    """The target that a block is; `weights` are the names of its graph's weights."""
    outputs = ["logits"] if kind == "head" else ["hidden_out", "cos", "sin"]
    if layer is not None:
        outputs = ["hidden_out", *(f"{spec.name}_out" for spec in layer_states(config, layer))]
        if config.attention_kind(layer) == "indexed":
            outputs.append("topk_indices")
        if config.mlp_kind(layer) == "sparse":
            outputs.append("expert_indices")
    return Target(kind, layer, (*outputs, GRAPH, *weights))


@dataclass(frozen=True)
class Rule:
    """Where each of `match` holds: a tighter `ratio`, or a waiver up to one.

    Attributes
    ----------
    match : of "kind", "layer", "block" and "output", those that are given.
    problem : the one that is waived; None for all that are a matter of degree.
    number : its place in the file, from 1.
    """

    match: dict[str, Any]
    ratio: float | None
    waive_up_to: float | None
    reason: str
    problem: ProblemKind | None = None
    number: int = 1

    def matches(self, where: Where) -> bool:
        """Whether the rule is about this output of this block."""
        return all(getattr(where, name) == value for name, value in self.match.items())

    def is_about(self, problem: ProblemKind) -> bool:
        """Whether a waiver is about such a problem."""
        return problem.is_of_degree if self.problem is None else problem is self.problem


@dataclass(frozen=True)
class Policy:
    """The rules of one file; the later of two that match holds."""

    path: Path | None
    rules: tuple[Rule, ...]
    end_to_end: dict[str, float]

    def tightened(self, where: Where) -> Rule | None:
        """The rule that tightens the ratio of an output; None where the contracts' own holds."""
        return self._last(lambda rule: rule.ratio is not None and rule.matches(where))

    def waived(self, where: Where, problem: ProblemKind, ratio: float) -> Rule | None:
        """The rule by which a problem is accepted that a limit of `ratio` would allow."""
        rule = self._last(
            lambda rule: (
                rule.waive_up_to is not None and rule.matches(where) and rule.is_about(problem)
            )
        )
        if rule is None or rule.waive_up_to is None:
            return None
        return rule if ratio <= rule.waive_up_to else None

    def _last(self, holds: Callable[[Rule], bool]) -> Rule | None:
        return next(filter(holds, reversed(self.rules)), None)

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

    def to_dict(self, judged: dict[str, Any]) -> dict[str, Any] | None:
        """For the report, of which `judged` are the parts with verdicts; None without a file.

        `used` of a rule counts the problems that it waives or the outputs that it tightens.
        """
        if self.path is None:
            return None
        used = dict.fromkeys((rule.number for rule in self.rules), 0)
        parts = [*judged["blocks"], judged["end_to_end"], *filter(None, [judged["runtime"]])]
        for problem in (problem for part in parts for problem in part["problems"]):
            if problem["rule"] is not None:
                used[problem["rule"]] += 1
        for block in judged["blocks"]:
            for output in block["isolated"]:
                where = Where(block["name"], block["kind"], block["layer"], output)
                if (rule := self.tightened(where)) is not None:
                    used[rule.number] += 1
        rules = [
            {"match": rule.match | ({} if rule.problem is None else {"problem": rule.problem}),
             "ratio": rule.ratio, "reason": rule.reason,
             "waive_up_to": None if rule.waive_up_to == math.inf else rule.waive_up_to,
             "waive": rule.waive_up_to is not None, "used": used[rule.number]}
            for rule in self.rules
        ]  # fmt: skip
        return {"file": str(self.path), "rules": rules, "end_to_end": self.end_to_end}


NO_POLICY = Policy(None, (), {})


def read_policy(path: Path, blocks: Mapping[str, Target], allowed_ratio: float) -> Policy:
    """The policy of `path` for blocks by name.

    Raises
    ------
    PolicyError
        If the file is not such TOML, a rule names a block, kind, layer, output or problem that
        there is not, or matches none, has no reason, or loosens a limit without being a waiver.
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
    known = dict(blocks) | {name: Target(name, None, ("logits",)) for name in WHOLE}
    made = []
    for number, values in enumerate(rules, 1):
        where = f"{path}: rule {number}"
        rule = _rule(where, values, allowed_ratio, number)
        _check_known(where, rule, known)
        made.append(rule)
    return Policy(path, tuple(made), _limits(path, content.get("end_to_end", {})))


def _check_known(where: str, rule: Rule, known: Mapping[str, Target]) -> None:
    """Each name that a rule matches is one of those that the blocks have which the names before it
    leave.
    """
    matched = dict(known)
    for name in ("block", "kind", "layer", "output"):
        if name not in rule.match:
            continue
        wanted, have = rule.match[name], dict.fromkeys(_values(matched, name))
        if wanted not in have:
            raise PolicyError(f"{where}: {name}: expected {_listed(have)}, found {wanted}")
        matched = {k: of for k, of in matched.items() if wanted in _values({k: of}, name)}
    if rule.ratio is not None and all(name in WHOLE for name in matched):
        raise PolicyError(
            f"{where}: ratio: expected an output of blocks, found that of {_listed(matched)}; "
            "[end_to_end] has its limits"
        )


def _values(known: Mapping[str, Target], name: str) -> list[Any]:
    if name == "block":
        return list(known)
    if name == "output":
        return [output for target in known.values() for output in target.outputs]
    return [value for target in known.values() if (value := getattr(target, name)) is not None]


def _listed(values: Iterable[Any]) -> str:
    texts = [str(value) for value in values]
    more = f" … {len(texts)} in all" if len(texts) > _KNOWN_SHOWN else ""
    return ", ".join(texts[:_KNOWN_SHOWN]) + more


def _rule(where: str, rule: dict[str, Any], allowed_ratio: float, number: int) -> Rule:
    known = _MATCHES | _NARROWS | _ACTIONS | {"reason": str}
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
    up_to = rule.get("waive_up_to")
    if up_to is not None and not 0 < up_to < math.inf:
        raise PolicyError(f"{where}: waive_up_to: expected a number above 0, found {up_to}")
    problem = _problem(where, rule)
    return Rule(match, ratio, math.inf if "waive" in rule else up_to, rule["reason"].strip(),
                problem, number)  # fmt: skip


def _problem(where: str, rule: dict[str, Any]) -> ProblemKind | None:
    if "problem" not in rule:
        return None
    if rule["problem"] not in _WAIVABLE:
        expected = ", ".join(_WAIVABLE)
        raise PolicyError(f"{where}: problem: expected one of {expected}, found {rule['problem']}")
    if "ratio" in rule:
        raise PolicyError(f"{where}: problem: expected a waiver, found a ratio")
    problem = ProblemKind(rule["problem"])
    if "waive_up_to" in rule and problem not in MEASURED:
        raise PolicyError(f"{where}: waive_up_to: {problem} has no ratio; expected waive = true")
    return problem


def _limits(path: Path, table: Any) -> dict[str, float]:
    if not isinstance(table, dict):
        raise PolicyError(f"{path}: end_to_end: expected a table")
    for name, value in table.items():
        if name not in _LIMITS:
            expected = ", ".join(_LIMITS)
            raise PolicyError(f"{path}: end_to_end: expected {expected}, found {name}")
        most = 1.0 if name in _SHARES else math.inf
        if (
            not isinstance(value, int | float) or isinstance(value, bool)
            or not (0 <= value <= most and math.isfinite(value))
        ):  # fmt: skip
            expected = "from 0 to 1" if name in _SHARES else "not below 0"
            raise PolicyError(
                f"{path}: end_to_end: {name}: expected a number {expected}, found {value!r}"
            )
    return {name: float(value) for name, value in table.items()}
