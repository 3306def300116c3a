"""Policies tighten and waive with a reason; baselines fail where something became worse."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import FAULTS, Faulty

from glm_trt.cli import main
from glm_trt.validate.baseline import ALLOWED_GROWTH, compare_with_baseline
from glm_trt.validate.cases import CaseOptions
from glm_trt.validate.policy import Policy, PolicyError, Rule, read_policy
from glm_trt.validate.report_files import ReportError, read_report
from glm_trt.validate.validation import ValidationOptions, validate_bundle

pytestmark = pytest.mark.usefixtures("shared_walks")
Made = Callable[[str], tuple[Path, Path]]
BLOCKS = {"embedding": ("embedding", None), "layer.0": ("dense_indexed", 0),
          "layer.1": ("sparse_indexed", 1), "head": ("head", None)}  # fmt: skip
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
        (rule(kind="sparse", waive=True), "matches no block; kinds are dense_indexed"),
        (rule(layer=7, waive=True), "matches no block"),
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
    of = ("layer.1", "sparse_indexed", 1)
    assert found.ratio(*of, "hidden_out") == 1.2 and found.ratio(*of, "kv_cache_out") == 1.5
    assert found.ratio("layer.0", "dense_indexed", 0, "hidden_out") is None
    dense = ("layer.0", "dense_indexed", 0, "hidden_out")
    assert found.waived(*dense, 2.9) == "signed off" and found.waived(*dense, 3.1) is None
    assert found.waived("end to end", "end to end", None, "logits", 99.0) == "signed off"


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
    assert kinds == {"hidden_out", "expert_indices"}
    reason = "TICKET-12: the fast norm"
    text = rule(kind="sparse_indexed", waive=True, reason=reason)
    whole = [rule(block=name, waive=True, reason=reason) for name in ("end to end", "runtime")]
    only_blocks = policy(tmp_path / "blocks.toml", text)
    assert main([*faulty, "--policy", str(only_blocks)]) == 1
    assert "end to end" in capsys.readouterr().out
    both = policy(tmp_path / "both.toml", text + "".join(whole))
    assert main([*faulty, "--policy", str(both), "--report", str(tmp_path / "r")]) == 0
    assert f"(waived: {reason})" in capsys.readouterr().out
    for name in ("report.md", "report.html"):
        assert reason in (tmp_path / "r" / name).read_text()
    # Not beyond what was waived.
    text = rule(kind="sparse_indexed", waive_up_to=2.5, reason=reason)
    up_to = policy(tmp_path / "up_to.toml", text + "".join(whole))
    assert main([*faulty, "--policy", str(up_to)]) == 1


def test_a_waiver_and_a_limit_end_where_they_say() -> None:
    rules = (Rule({"kind": "k"}, None, 9.0, "first"), Rule({"kind": "k"}, None, 2.5, "second"))
    found = Policy(Path("x"), rules, {"max_kl_divergence": 1e-4, "min_top1": 0.9})
    assert found.waived("b", "k", 1, "o", 2.5) == "second"
    assert found.waived("b", "k", 1, "o", 2.6) is None
    assert found.waived("b", "other", 1, "o", 1.0) is None
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
    assert main([*command, str(tight)]) == 1
    assert "layer.0: hidden_out" in capsys.readouterr().out
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


def test_baselines_of_something_else(report: dict[str, Any], tmp_path: Path) -> None:
    for name, change in {
        "seed": lambda x: x["options"].update(seed=5),
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
        ('{"format": "glm-trt validation", "format_version": 1}', "format version: expected 2"),
        ('{"format": "glm-trt validation", "format_version": 2}', "required"),
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
