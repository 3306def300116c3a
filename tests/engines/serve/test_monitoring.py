"""The files of examples/monitoring beside what a server says, and what their readers take."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from servers import Running

ROOT = Path(__file__).parents[3]
PLACE = ROOT / "examples" / "monitoring"
DASHBOARD = PLACE / "grafana" / "dashboards" / "glm-trt.json"
NAME = re.compile(r"\b(?:vllm|glm_trt|process|python)[:_][a-z0-9_:]+")
MATCHER = re.compile(r"([a-z_]+)(?:=~|!~|!=|=)\"")
OF_PROMETHEUS = {"job", "instance"}  # labels that it adds itself


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def panels() -> list[dict[str, Any]]:
    return dashboard()["panels"]


def queries() -> list[str]:
    rules = yaml.safe_load((PLACE / "alerts.yml").read_text())["groups"]
    found = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    found += [rule["expr"] for group in rules for rule in group["rules"]]
    return found + [
        variable["query"]["query"] for variable in dashboard()["templating"]["list"]
        if variable["type"] == "query"
    ]  # fmt: skip


@pytest.fixture(scope="module")
def exposed(server: Running) -> dict[str, set[str]]:
    """The labels of each sample that a server with drafts has, before anybody asked it anything
    special.
    """
    answer = httpx2.get(f"{server.url}/metrics")
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_every_query_names_what_there_is(exposed: dict[str, set[str]]) -> None:
    seen = set()
    for query in queries():
        names = [name for name in NAME.findall(query)]
        assert names or query.startswith("up{"), query
        labels = OF_PROMETHEUS.union(*(exposed[name] for name in names))
        grouped = [
            label.strip() for group in re.findall(r"\bby \(([^)]*)\)", query)
            for label in group.split(",")
        ]  # fmt: skip
        assert set(MATCHER.findall(query)) | set(grouped) <= labels, query
        seen |= {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in names}
    for name in ("generation_tokens", "time_to_first_token_seconds", "inter_token_latency_seconds",
                 "num_requests_running", "num_requests_waiting", "prefix_cache_hits",
                 "spec_decode_num_accepted_tokens", "request_success"):  # fmt: skip
        assert f"vllm:{name}" in seen


def test_every_metric_is_in_the_documentation(exposed: dict[str, set[str]]) -> None:
    text = (ROOT / "docs" / "serving_operations.md").read_text()
    told = set(re.findall(r"`((?:vllm|glm_trt):[a-z0-9_]+)", text))
    ours = {name for name in exposed if name.startswith(("vllm:", "glm_trt:"))}
    ours = {name for name in ours if not name.endswith(("_created", "_sum", "_count"))}
    assert told == {name.removesuffix("_bucket") for name in ours}


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    board = dashboard()
    assert board["schemaVersion"] >= 36 and board["id"] is None
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", board["uid"]) and board["title"]
    identities = [panel["id"] for panel in board["panels"]]
    assert len({*identities}) == len(identities) > 15
    variables = {variable["name"] for variable in board["templating"]["list"]}
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["h"] > 0, panel["title"]
        assert panel["type"] in ("row", "stat", "timeseries") and panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["description"] and panel["datasource"]["uid"] == "${datasource}"
        references = [target["refId"] for target in panel["targets"]]
        assert len({*references}) == len(references) > 0
        for target in panel["targets"]:
            used = {x for x in re.findall(r"\$(\w+)", target["expr"]) if not x.startswith("__")}
            assert used <= variables, target["expr"]


def test_no_panel_lies_on_another() -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        return {*itertools.product(range(at["x"], at["x"] + at["w"]),
                                   range(at["y"], at["y"] + at["h"]))}  # fmt: skip

    for first, second in itertools.combinations(panels(), 2):
        assert not cells(first) & cells(second), (first["title"], second["title"])


def test_the_provisioned_source_is_the_scraped_one() -> None:
    provisioning = PLACE / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())
    config = yaml.safe_load((PLACE / "prometheus.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    interval = source["datasources"][0]["jsonData"]["timeInterval"]
    assert interval == config["global"]["scrape_interval"]
    assert config["scrape_configs"][0]["job_name"] == "glm-trt"
    assert (PLACE / config["rule_files"][0]).is_file()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_its_files(tmp_path: Path) -> None:
    for kind, name in (("config", "prometheus.yml"), ("rules", "alerts.yml")):
        done = subprocess.run(["promtool", "check", kind, str(PLACE / name)], check=False,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    test = {
        "rule_files": [str(PLACE / "alerts.yml")],
        "evaluation_interval": "15s",
        "tests": [{
            "interval": "15s",
            "input_series": [
                _series('up{job="glm-trt", instance="down"}', "1 1 0x60"),
                _series('glm_trt:failed_passes_total{instance="bad"}', "0x8 1x60"),
                _series(_responses("bad", 200), "0+9x80"),
                _series(_responses("bad", 500), "0+1x80"),
                _series(_responses("well", 200), "0+100x80"),
                _series(_responses("well", 500), "0+1x80"),
                _series(_responses("well", 429), "0x80"),
                _series(_responses("full", 429), "0+1x80"),
                *(_series(f'vllm:time_to_first_token_seconds_bucket{{instance="slow", le="{le}"}}',
                          f"0+{n}x80") for le, n in (("10", 5), ("20", 10), ("+Inf", 10))),
                *(_series(f'vllm:time_to_first_token_seconds_bucket{{instance="well", le="{le}"}}',
                          f"0+{n}x80") for le, n in (("10", 10), ("20", 10), ("+Inf", 10))),
            ],
            "alert_rule_test": [
                _expected("GlmTrtDown", "critical", "down", "5m", "down does not answer"),
                _expected("GlmTrtPassesFail", "critical", "bad", "4m",
                          "bad: passes fail; its standard error says why"),
                _expected("GlmTrtServerErrors", "critical", "bad", "8m",
                          "bad: 10% of the responses are 5xx"),
                _expected("GlmTrtRefuses", "warning", "full", "8m",
                          "full has refused requests (429) for 5 minutes: more wait than may"),
                _expected("GlmTrtSlowFirstToken", "warning", "slow", "15m",
                          "slow: the first token takes 19s (95th percentile)"),
            ],
        }],
    }  # fmt: skip
    for group in yaml.safe_load((PLACE / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["alert"] in json.dumps(test), rule
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    done = subprocess.run(["promtool", "test", "rules", "test.yml"], check=False, cwd=tmp_path,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def _series(name: str, values: str) -> dict[str, str]:
    return {"series": name, "values": values}


def _responses(instance: str, status: int) -> str:
    labels = f'instance="{instance}", path="/v1/completions", status="{status}"'
    return f"glm_trt:http_responses_total{{{labels}}}"


def _expected(
    alert: str, severity: str, instance: str, when: str, summary: str
) -> dict[str, Any]:  # fmt: skip
    labels = {"severity": severity, "instance": instance}
    if alert == "GlmTrtDown":
        labels["job"] = "glm-trt"
    expected = {"exp_labels": labels, "exp_annotations": {"summary": summary}}
    return {"eval_time": when, "alertname": alert, "exp_alerts": [expected]}
