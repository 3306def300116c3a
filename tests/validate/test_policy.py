"""Policies tighten and waive with a reason; baselines fail where something became worse."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import make_oracle
from faults import FAULTS, Faulty

from glm_trt.cli import main
from glm_trt.model.config import ModelConfig
from glm_trt.validate.judging.compare import Choices
from glm_trt.validate.judging.measure import BlockResult, EndToEnd, Measures, Pair
from glm_trt.validate.judging.policy import Policy, PolicyError, Rule, Target, Where, read_policy
from glm_trt.validate.judging.problem_kinds import Finding, ProblemKind
from glm_trt.validate.judging.problems import PROBLEMS_SHOWN
from glm_trt.validate.judging.verdict import judge
from glm_trt.validate.reporting.baseline import (
    ALLOWED_GROWTH,
    ALLOWED_ROW_GROWTH,
    compare_with_baseline,
)
from glm_trt.validate.reporting.report_files import ReportError, read_report
from glm_trt.validate.reporting.report_text import unused_rules
from glm_trt.validate.running.cases import CaseOptions
from glm_trt.validate.validation import ValidationOptions, validate_bundle

pytestmark = pytest.mark.usefixtures("shared_walks")
Made = Callable[[str], tuple[Path, Path]]
OUTPUTS = ("hidden_out", "kv_cache_out", "topk_indices")
BLOCKS = {"embedding": Target("embedding", None, ("hidden_out", "cos", "sin")),
          "layer.0": Target("dense_indexed", 0, OUTPUTS),
          "layer.1": Target("sparse_indexed", 1, (*OUTPUTS, "expert_indices", "mlp.gate.weight")),
          "head": Target("head", None, ("logits",))}  # fmt: skip
SHORT = ["--longest", "48"]


def policy(place: Path, text: str) -> Path:
    place.write_text(text)
    return place


def rule(**values: Any) -> str:
    """TOML's scalars are JSON's."""
    values = {"reason": "signed off", **values}
    return "[[rule]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rule =", "not TOML"),
        ("[end]", "expected .*, found end"),
        ("rule = 3", "expected tables"),
        (rule(kind="sparse_indexed"), "expected one of ratio, waive = true and waive_up_to"),
        (rule(kind="sparse_indexed", waive=False), "expected one of ratio"),
        (rule(kind="sparse_indexed", waive=True, ratio=1.0), "expected one of ratio"),
        (rule(waive=True), "what it is about"),
        (
            rule(kind="sparse", waive=True),
            "kind: expected embedding, dense_.*found sparse$",
        ),
        (rule(layer=7, waive=True), "layer: expected 0, 1, found 7"),
        (rule(block="layer.9", waive=True), "block: expected embedding, layer.0.*found layer.9"),
        (
            rule(layer=0, output="expert_indices", waive=True),
            "output: expected hidden_out, kv_cache_out, topk_indices, found expert_indices",
        ),
        (rule(output="hiden_out", waive=True), "output: expected hidden_out, cos.*found hiden_out"),
        (rule(block="end to end", output="hidden_out", waive=True), "output: expected logits,"),
        (rule(kind="dense_indexed", block="head", waive=True), "kind: expected head, found dense"),
        (rule(block="runtime", ratio=1.0), r"ratio: expected an output of blocks.*\[end_to_end\]"),
        (rule(layer=1, problem="nan", waive=True), "problem: expected one of error, .*found nan"),
        (rule(layer=1, problem="limit", waive=True), "problem: expected one of error, .*found lim"),
        (rule(layer=1, problem="error", ratio=1.0), "problem: expected a waiver, found a ratio"),
        (rule(layer=1, problem="missing", waive_up_to=2.0), "missing has no ratio"),
        (rule(problem="missing", waive=True), "what it is about"),
        (rule(layer=1, waive_up_to=0), "waive_up_to: expected a number above 0, found 0"),
        (rule(layer=1).strip() + "\nwaive_up_to = inf", "expected a number above 0, found inf"),
        ("[end_to_end]\nmax_kl_divergence = nan", "not below 0, found nan"),
        ("[end_to_end]\nmin_top1 = 99", "from 0 to 1, found 99"),
        (rule(layer="1", waive=True), "layer: expected a int, found '1'"),
        (rule(layer=True, waive=True), "layer: expected a int, found True"),
        (rule(layer=1, waive=True, reason=" "), "expected a reason"),
        (rule(layer=1, ratio=2.5), r"at most 2\.0.*to accept more, waive"),
        (rule(layer=1, ratio=0), "expected above 0"),
        (rule(layer=1, waiver=True), "found waiver"),
        ("[end_to_end]\nmax_kl = 1", "found max_kl"),
        ("[end_to_end]\nmin_top1 = true", "expected a number"),
        ("end_to_end = 1", "expected a table"),
    ],
)
def test_what_says_nothing_sensible_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        read_policy(policy(tmp_path / "p.toml", text), BLOCKS, 2.0)


def test_the_later_rule_holds(tmp_path: Path) -> None:
    text = rule(kind="sparse_indexed", ratio=1.5) + rule(layer=1, output="hidden_out", ratio=1.2)
    text += rule(block="layer.0", waive_up_to=3.0) + rule(block="end to end", waive=True)
    found = read_policy(policy(tmp_path / "p.toml", text), BLOCKS, 2.0)

    def ratio(where: Where) -> float | None:
        rule = found.tightened(where)
        return None if rule is None else rule.ratio

    sparse = Where("layer.1", "sparse_indexed", 1, "hidden_out")
    dense = Where("layer.0", "dense_indexed", 0, "hidden_out")
    assert ratio(sparse) == 1.2 and ratio(sparse._replace(output="kv_cache_out")) == 1.5
    assert ratio(dense) is None
    assert found.waived(dense, ProblemKind.ERROR, 2.9) == found.rules[2]
    assert found.waived(dense, ProblemKind.ERROR, 3.1) is None
    whole = Where("end to end", "end to end", None, "logits")
    assert found.waived(whole, ProblemKind.GREEDY, 99.0) == found.rules[3]


@pytest.fixture
def measures() -> Measures:
    """What passed: a layer's output, and a head behind it."""
    config = ModelConfig.from_dict(make_oracle().config.to_dict(), "config")
    made = Measures(config, "float32", [], {})
    made.results = {"layer.1": BlockResult("layer.1", "sparse_indexed"),
                    "head": BlockResult("head", "head")}  # fmt: skip
    made.end_to_end = EndToEnd(1, 1, 1.0, [0.0], [0.0])
    add_hidden(made, 1.0)
    return made


def add_hidden(measures: Measures, first: float) -> None:
    """A hidden state of ones, of which the backend's first is another."""
    expected = np.ones((1, 2, 4))
    found = expected.copy()
    found[0, 0, 0] = first
    pair = Pair.of("float32")
    pair.add({"exact": expected, "rounded": expected * (1 + 1e-7), "found": found}, "text")
    measures.results["layer.1"].isolated["hidden_out", "prefill"] = pair


def judged(measures: Measures, tmp_path: Path, *rules: str) -> dict[str, Any]:
    found = read_policy(policy(tmp_path / "p.toml", "".join(rules)), BLOCKS, 2.0)
    parts = judge(measures, found, {"layer.1": 1})
    return parts | {"policy": found.to_dict(parts)}


BROKEN = [kind for kind in ProblemKind if not kind.is_of_degree and kind is not ProblemKind.LIMIT]


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_waived_by_its_name_alone(
    measures: Measures, tmp_path: Path, kind: ProblemKind
) -> None:
    """Whatever rules say of outputs, layers and kinds, even all of them at once."""
    measures.results["layer.1"].findings = [Finding("hidden_out", "so it is", kind)]
    everything = [
        rule(layer=1, waive=True), rule(kind="sparse_indexed", waive=True),
        rule(block="layer.1", output="hidden_out", waive=True),
        rule(output="hidden_out", waive_up_to=1e9),
    ]  # fmt: skip
    assert not judged(measures, tmp_path, *everything)["ok"]
    others = [
        rule(layer=1, problem=other, waive=True) for other in ProblemKind
        if other not in (kind, ProblemKind.LIMIT)
    ]  # fmt: skip
    assert not judged(measures, tmp_path, *everything, *others)["ok"]
    named = rule(layer=1, problem=kind, waive=True)
    # A later rule that is not about it takes nothing away.
    found = judged(measures, tmp_path, *others, named, *everything)
    (problem,) = found["blocks"][0]["problems"]
    assert found["ok"] and problem["problem"] == kind and problem["rule"] == len(others) + 1


def test_what_is_of_degree_is_waived_with_its_output(measures: Measures, tmp_path: Path) -> None:
    add_hidden(measures, 1.5)
    waived = rule(output="hidden_out", waive=True)
    assert not judged(measures, tmp_path)["ok"] and judged(measures, tmp_path, waived)["ok"]
    add_hidden(measures, np.nan)
    (problem,) = judged(measures, tmp_path, waived)["blocks"][0]["problems"]
    assert problem["problem"] == "not finite" and problem["waived"] is None
    named = rule(output="hidden_out", problem="not finite", waive=True)
    assert judged(measures, tmp_path, waived, named)["ok"]


def test_impossible_choices_are_not_wrong_ones(measures: Measures, tmp_path: Path) -> None:
    scores = np.array([[3.0, 2.0, 1.0]])
    waived = rule(output="expert_indices", waive=True)
    for found, ok in (([0, 2], True), ([0, 3], False), ([0, 0], False), ([0, -1], False)):
        choices = Choices()
        choices.add(np.array([found]), np.array([[0, 1]]), (scores, scores), np.zeros(1), "text")
        measures.results["layer.1"].choices["expert_indices"] = choices
        assert judged(measures, tmp_path, waived)["ok"] == ok, found


def test_a_waiver_does_not_hide_what_comes_behind_many(measures: Measures, tmp_path: Path) -> None:
    result = measures.results["layer.1"]
    many = [Finding("kv_cache_out", "x", ProblemKind.OVERWRITTEN)] * (PROBLEMS_SHOWN + 1)
    result.findings = [*many, Finding("kv_cache_out", "x", ProblemKind.MISSING)]
    waived = rule(layer=1, problem="overwritten", waive=True)
    found = judged(measures, tmp_path, waived)
    assert not found["ok"]
    counted = [problem["problem"] for problem in found["blocks"][0]["problems"]]
    assert counted == [*["overwritten"] * PROBLEMS_SHOWN, "missing"]


def test_rules_that_nothing_used_are_said(measures: Measures, tmp_path: Path) -> None:
    add_hidden(measures, 1.5)
    found = judged(
        measures, tmp_path, rule(layer=0, waive=True, reason="no more"), rule(layer=1, waive=True),
        rule(kind="sparse_indexed", ratio=1.5), rule(kind="dense_indexed", ratio=1.5, reason="old"),
    )  # fmt: skip
    assert [x["used"] for x in found["policy"]["rules"]] == [0, 1, 1, 0]
    assert unused_rules(found) == ["nothing used rule 1 (no more)", "nothing used rule 4 (old)"]
    assert unused_rules({"policy": None}) == []


@pytest.fixture
def faulty(made: Made, tmp_path: Path) -> list[str]:
    """What validates a bundle of which layer.1 has another epsilon."""
    checkpoint, bundle = made("plain")
    fault = next(fault for fault in FAULTS if fault.name == "larger_epsilon")
    changed = Faulty(bundle, tmp_path / "faulty")
    fault.edit(changed)
    changed.seal()
    return ["validate", str(tmp_path / "faulty"), "--checkpoint", str(checkpoint), *SHORT]


def test_waived_faults_pass_and_are_in_the_report(
    faulty: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*faulty, "--json"]) == 1
    kinds = {p["output"] for b in json.loads(capsys.readouterr().out)["blocks"]
             for p in b["problems"]}  # fmt: skip
    assert kinds == {"hidden_out", "expert_indices", "graph"}
    reason = "TICKET-12: the fast norm"
    text = rule(kind="sparse_indexed", waive=True, reason=reason)
    graph = rule(kind="sparse_indexed", output="graph", problem="graphs", waive=True, reason=reason)
    whole = [rule(block=name, waive=True, reason=reason) for name in ("end to end", "runtime")]
    only_blocks = policy(tmp_path / "blocks.toml", text)
    assert main([*faulty, "--policy", str(only_blocks)]) == 1
    assert "end to end" in capsys.readouterr().out
    # What is broken is not waived along with its kind.
    without = policy(tmp_path / "without.toml", text + "".join(whole))
    assert main([*faulty, "--policy", str(without)]) == 1
    assert "[graphs]\n" in capsys.readouterr().out
    both = policy(tmp_path / "both.toml", text + graph + "".join(whole))
    assert main([*faulty, "--policy", str(both), "--report", str(tmp_path / "r")]) == 0
    assert f"(waived: {reason})" in capsys.readouterr().out
    for name in ("report.md", "report.html"):
        assert reason in (tmp_path / "r" / name).read_text()
    # Not beyond what was waived.
    text = rule(kind="sparse_indexed", waive_up_to=2.5, reason=reason)
    up_to = policy(tmp_path / "up_to.toml", text + graph + "".join(whole))
    assert main([*faulty, "--policy", str(up_to)]) == 1


def test_a_waiver_and_a_limit_end_where_they_say() -> None:
    rules = (Rule({"kind": "k"}, None, 9.0, "first"), Rule({"kind": "k"}, None, 2.5, "second"))
    found = Policy(Path("x"), rules, {"max_kl_divergence": 1e-4, "min_top1": 0.9})
    where = Where("b", "k", 1, "o")
    assert found.waived(where, ProblemKind.ERROR, 2.5) == rules[1]
    assert found.waived(where, ProblemKind.ERROR, 2.6) is None
    assert found.waived(where._replace(kind="other"), ProblemKind.ERROR, 1.0) is None
    values = {"kl_divergence": {"max": 1e-4}, "top1": 0.9, "top5": 1.0, "perplexity": None}
    assert found.end_to_end_problems(values) == []
    worse = values | {"kl_divergence": {"max": 2e-4}, "top1": 0.8}
    assert [text.split()[1] for text in found.end_to_end_problems(worse)] == [
        "max_kl_divergence", "min_top1"
    ]  # fmt: skip


def test_limits(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, bundle = made("plain")
    command = ["validate", str(bundle), "--checkpoint", str(checkpoint), *SHORT, "--policy"]
    tight = policy(tmp_path / "tight.toml", rule(kind="dense_indexed", ratio=0.01))
    unused = rule(layer=1, output="hidden_out", waive=True, reason="TICKET-13")
    tight.write_text(tight.read_text() + unused)
    assert main([*command, str(tight), "--report", str(tmp_path / "r")]) == 1
    out = capsys.readouterr().out
    assert "layer.0: hidden_out" in out and "nothing used rule 2 (TICKET-13)" in out
    assert "rule 1" not in out
    assert "nothing used rule 2 (TICKET-13)" in (tmp_path / "r" / "report.md").read_text()
    assert "(TICKET-13): nothing used it" in (tmp_path / "r" / "report.html").read_text()
    ends = "[end_to_end]\nmax_kl_divergence = 1e-20\nmin_top1 = 0.5\n"
    assert main([*command, str(policy(tmp_path / "ends.toml", ends))]) == 1
    out = capsys.readouterr().out
    assert "policy max_kl_divergence" in out and "min_top1" not in out


@pytest.fixture(scope="module")
def report(made: Made) -> dict[str, Any]:
    checkpoint, bundle = made("plain")
    options = ValidationOptions(checkpoint=checkpoint, cases=CaseOptions(longest=48))
    return validate_bundle(bundle, options)


def saved(report: dict[str, Any], place: Path) -> Path:
    place.write_text(json.dumps(report))
    return place


def test_baseline(report: dict[str, Any], tmp_path: Path) -> None:
    assert compare_with_baseline(report, saved(report, tmp_path / "same.json"))["ok"]
    better = copy.deepcopy(report)
    entry = better["blocks"][2]["isolated"]["hidden_out"]["prefill"]
    entry["error"] /= 1.05 * ALLOWED_GROWTH
    found = compare_with_baseline(report, saved(better, tmp_path / "better.json"))
    assert [x["text"].split(":")[0] for x in found["regressions"]] == [
        "layer.1 hidden_out, prefill"
    ]
    assert not found["ok"]
    # The other way round it has improved.
    worse = compare_with_baseline(better, saved(report, tmp_path / "report.json"))
    assert worse["ok"]
    wrong = copy.deepcopy(report)
    wrong["blocks"][2]["choices"]["expert_indices"]["wrong"] = 2
    wrong["end_to_end"]["kl_divergence"]["mean"] = 1.0
    wrong["end_to_end"]["greedy"][0]["wrong"] = 1
    found = compare_with_baseline(wrong, tmp_path / "report.json")
    assert [x["output"] for x in found["regressions"]] == ["expert_indices", "logits", "greedy"]


def _rows(x: dict[str, Any]) -> None:
    entry = x["blocks"][2]["isolated"]["hidden_out"]["prefill"]
    entry["row_error"] *= 1.05 * ALLOWED_ROW_GROWTH


def _near_ties(x: dict[str, Any]) -> None:
    x["blocks"][2]["choices"]["expert_indices"]["near_ties"] += 30


def _few_everywhere(x: dict[str, Any]) -> None:
    """In no block more than by chance, in all of them together it is."""
    for block in x["blocks"]:
        if "topk_indices" in block["choices"]:
            block["choices"]["topk_indices"]["near_ties"] += 20


def _slope(x: dict[str, Any]) -> None:
    entry = x["blocks"][2]["systematic"]["hidden_out"]["prefill"]["update"]
    entry["found"] = 0.9 * entry["highest"]


def _channel(x: dict[str, Any]) -> None:
    """The worst channel is another one, and worse."""
    slopes = x["blocks"][2]["systematic"]["hidden_out"]["prefill"]
    name = next(name for name in slopes if "channel" in name)
    entry = slopes.pop(name)
    slopes["bias of channel 99"] = entry | {"found": 0.95 * entry["lowest"]}


def _parted(x: dict[str, Any]) -> None:
    x["blocks"][2]["parted"]["expert_indices"]["found"] += 30


def _aside(x: dict[str, Any]) -> None:
    longest = max(rows * length for rows, length in (case["shape"] for case in x["cases"]))
    end = x["end_to_end"]
    aside = end["tokens_set_aside_by"]
    aside["found"] = int(1.3 * aside["found"]) + longest + 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_rows, ["layer.1 hidden_out, prefill: error in the worst row"]),
        (lambda x: x["blocks"][2]["isolated"].pop("kv_cache_out"), [
            f"layer.1 kv_cache_out, {phase}: was compared, is missing now"
            for phase in ("decode", "prefill")]),
        (lambda x: x["blocks"][2]["isolated"]["hidden_out"].pop("decode"),
         ["layer.1 hidden_out, decode: was compared, is missing now"]),
        (lambda x: x["blocks"][2]["choices"].pop("expert_indices"),
         ["layer.1 expert_indices: was compared, is missing now"]),
        (_near_ties, ["layer.1 expert_indices: 30 near ties, was 0", "all blocks, expert_indices"]),
        (_few_everywhere, ["all blocks, topk_indices"]),
        (_slope, ["layer.1 hidden_out, prefill: gain of update +"]),
        (_channel, ["layer.1 hidden_out, prefill: bias of channel 99 -"]),
        (lambda x: x["blocks"][2]["systematic"]["hidden_out"]["prefill"].pop("update"),
         ["layer.1 hidden_out, prefill: gain of update was judged, is not now"]),
        (_parted, ["layer.1 expert_indices: 30 near ties of its own run, was 0"]),
        (_aside, ["tokens set aside after the backend's near ties, was 0"]),
        (lambda x: x.update(runtime=None, runtime_skipped="too large"),
         ["runtime: was compared, is not now: too large"]),
        (lambda x: x["blocks"][2]["isolated"]["hidden_out"]["decode"].update(row_error=None),
         ["layer.1 hidden_out, decode: error in the worst row not finite"]),
    ],
)  # fmt: skip
def test_what_has_become_worse(
    report: dict[str, Any], tmp_path: Path, change: Callable[[Any], None], expected: list[str]
) -> None:
    worse = copy.deepcopy(report)
    change(worse)
    found = compare_with_baseline(worse, saved(report, tmp_path / "report.json"))
    texts = sorted(x["text"] for x in found["regressions"])
    assert len(texts) >= len(expected) and not found["ok"]
    for text in expected:
        assert any(text in regression for regression in texts), (text, texts)
    # What there is more of now, or less wrong, is no regression.
    better = compare_with_baseline(report, saved(worse, tmp_path / "worse.json"))
    assert better["ok"], better["regressions"]


def test_the_checkpoint_is_the_one_that_was_compared_with(
    made: Made, report: dict[str, Any]
) -> None:
    """Not the copy of it that the bundle has."""
    checkpoint, _ = made("plain")
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest()
              for p in checkpoint.glob("*.safetensors")}  # fmt: skip
    assert report["environment"]["checkpoint"] == hashes


def test_baselines_of_something_else(report: dict[str, Any], tmp_path: Path) -> None:
    for name, change in {
        "seed": lambda x: x["options"].update(seed=5),
        "checkpoint": lambda x: x["environment"].update(checkpoint={"other.safetensors": "0"}),
        "checkpoint, model.safetensors": lambda x: x["environment"]["checkpoint"].update(
            {"model.safetensors": "0"}
        ),
        "dtype": lambda x: x["backend"].update(dtype="bfloat16"),
        "blocks": lambda x: x["blocks"].pop(),
        "cases": lambda x: x["cases"].pop(),
    }.items():
        other = copy.deepcopy(report)
        change(other)
        with pytest.raises(ReportError, match=f"{name}: expected .*not comparable"):
            compare_with_baseline(report, saved(other, tmp_path / "other.json"))
    for content, message in (
        ("{", "not JSON"), ("[]", "not a report"), ('{"format": "x"}', "not a report"),
        ('{"format": "glm-trt validation", "format_version": 3}', "format version: expected 4"),
        ('{"format": "glm-trt validation", "format_version": 4}', "required"),
    ):  # fmt: skip
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ReportError, match=message):
            read_report(tmp_path / "bad.json")
    with pytest.raises(ReportError, match="No such file"):
        read_report(tmp_path / "none.json")


def test_the_command_fails_on_a_regression(
    made: Made, report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, bundle = made("plain")
    better = copy.deepcopy(report)
    better["blocks"][2]["isolated"]["kv_cache_out"]["prefill"]["error"] /= 10
    command = ["validate", str(bundle), "--checkpoint", str(checkpoint), *SHORT, "--baseline"]
    assert main([*command, str(saved(better, tmp_path / "better.json"))]) == 1
    assert "baseline: layer.1 kv_cache_out, prefill" in capsys.readouterr().out
    (tmp_path / "r").mkdir()
    saved(report, tmp_path / "r" / "report.json")
    assert main([*command, str(tmp_path / "r")]) == 0
    # A file that is no report is said before anything runs.
    assert main([*command, str(bundle / "manifest.json")]) == 2
    assert "not a report" in capsys.readouterr().err
