"""Polygraphy's files beside a saved run, and what diff makes of them."""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from polygraphy.comparator import RunResults

from glm_trt.cli import main
from glm_trt.validate.running.walk import Observation
from glm_trt.validate.saving import polygraphy_files
from glm_trt.validate.saving.polygraphy_diff import diff_results
from glm_trt.validate.saving.polygraphy_files import BlockResults, ResultsError, read_results

SHAPE = (1, 3, 4)


def save(folder: Path, dtype: str, *observations: Observation) -> None:
    results = BlockResults(dtype)
    for seen in observations:
        results.add(seen)
    results.save(folder, "layer.0")


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A layer with a cache of 6 positions, of which the pass wrote 1 to 3."""
    generator = np.random.default_rng(0)
    exact = {"hidden_out": generator.standard_normal(SHAPE),
             "kv_cache_out": generator.standard_normal((1, 1, 3, 2)),
             "expert_indices": np.array([[0, 1], [2, 3], [1, 3]], np.int32)}  # fmt: skip
    rounded = {k: x.astype(np.float32) if x.dtype == np.float64 else x for k, x in exact.items()}
    inputs = {"kv_cache": np.full((1, 1, 6, 2), 64, np.float32), "past_lengths": np.array([1])}
    seen = Observation("layer.0", "text", "isolated", 1, 3,
                       {"exact": exact, "rounded": rounded, "found": rounded},
                       inputs=inputs)  # fmt: skip
    probe = Observation("layer.0", "text", "ties", 1, 3, seen.tensors, inputs=inputs)
    save(tmp_path / "polygraphy", "float32", seen, probe)
    return tmp_path / "polygraphy" / "layer.0.json"


def other(ours: Path, **changes: np.ndarray) -> Path:
    """The backend's outputs with changes, as `polygraphy run --save-outputs` writes them."""
    (outputs,) = read_results(ours)["found"]
    results = RunResults()
    results.add([outputs | changes], runner_name="onnxrt-runner")
    path = ours.parent / "outputs.json"
    results.save(str(path))
    return path


def test_polygraphy_reads_them_and_caches_are_whole(ours: Path) -> None:
    results = RunResults.load(str(ours))
    assert list(results.keys()) == ["exact", "eager-float32", "found"]
    (outputs,) = results["found"]
    cache = outputs["kv_cache_out"]
    assert cache.shape == (1, 1, 6, 2)
    assert (cache[:, :, [0, 4, 5]] == 64).all() and (cache[:, :, 1:4] != 64).all()
    assert outputs["expert_indices"].dtype == np.int32
    assert results["exact"][0]["hidden_out"].dtype == np.float64
    (fed,) = polygraphy_files.read_inputs(ours.with_name("layer.0.inputs.json"))
    assert list(fed) == ["kv_cache", "past_lengths"]


def test_bfloat16_is_written_as_float32(tmp_path: Path) -> None:
    narrow = {"hidden_out": np.arange(12).reshape(SHAPE).astype(ml_dtypes.bfloat16)}
    exact = {"hidden_out": narrow["hidden_out"].astype(np.float64)}
    seen = Observation("layer.0", "text", "isolated", 1, 3,
                       {"exact": exact, "rounded": narrow, "found": narrow},
                       inputs={"hidden": narrow["hidden_out"]})  # fmt: skip
    save(tmp_path, "bfloat16", seen)
    (outputs,) = RunResults.load(str(tmp_path / "layer.0.json"))["found"]
    assert outputs["hidden_out"].dtype == np.float32
    assert (outputs["hidden_out"] == exact["hidden_out"]).all()


def test_passes_up_to_a_size_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole ones, the first of them whatever its size; and of the next block anew."""
    hidden = {"hidden_out": np.zeros(SHAPE, np.float32)}  # with what is fed 4 x 48 bytes
    seen = Observation("layer.0", "text", "isolated", 1, 3,
                       {"exact": hidden, "rounded": hidden, "found": hidden},
                       inputs={"hidden": hidden["hidden_out"]})  # fmt: skip
    for most, written in ((0, 1), (3 * 192 - 1, 2), (3 * 192, 3)):
        monkeypatch.setattr(polygraphy_files, "MOST_BYTES", most)
        results = BlockResults("float32")
        for folder in (tmp_path / "a", tmp_path / "b"):
            for _ in range(3):
                results.add(seen)
            results.save(folder, "layer.0")
            assert len(read_results(folder / "layer.0.json")["found"]) == written
            assert len(polygraphy_files.read_inputs(folder / "layer.0.inputs.json")) == written


def test_results_are_judged_by_the_yardstick(ours: Path) -> None:
    (outputs,) = read_results(ours)["found"]
    good = diff_results(ours, other(ours))
    assert good["ok"] and good["yardstick"] == "float32"
    hidden = outputs["hidden_out"] * np.float32(1.001)
    bad = diff_results(ours, other(ours, hidden_out=hidden))
    assert not bad["ok"] and len(bad["problems"]) == 1 and "hidden_out" in bad["problems"][0]
    (entry,) = [x for x in bad["outputs"] if x["output"] == "hidden_out"]
    assert entry["difference"] == pytest.approx(1e-3, rel=1e-3)


def test_other_choices_are_wrong(ours: Path) -> None:
    report = diff_results(ours, other(ours, expert_indices=np.array([[1, 0], [2, 3], [1, 2]])))
    assert report["choices"] == [{"output": "expert_indices", "rows": 3, "equal": 2}]
    assert not report["ok"] and "1 of 3 rows differ" in report["problems"][0]


def test_files_that_do_not_match_are_refused(ours: Path, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="iteration 0: expected outputs"):
        diff_results(ours, other(ours, hidden_out=np.zeros((1, 2, 4), np.float32)))
    with pytest.raises(ResultsError, match=r"polygraphy/BLOCK\.json"):
        diff_results(tmp_path, ours)
    text = tmp_path / "text.json"
    text.write_text("{")
    with pytest.raises(ResultsError, match="no file of Polygraphy's results"):
        diff_results(ours, text)
    with pytest.raises(ResultsError, match="expected Polygraphy's results"):
        diff_results(ours, ours.with_name("layer.0.inputs.json"))


def test_the_command(
    ours: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["diff", str(ours), str(other(ours))]) == 0
    assert capsys.readouterr().out.endswith("ok\n")
    assert main(["diff", str(ours), str(other(ours)), "--policy", "p.toml"]) == 2
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    assert main(["diff", str(ours), str(ours.with_name("outputs.json"))]) == 3
    assert (
        "polygraphy, which is not installed: pip install 'glm-trt[validate]'"
        in capsys.readouterr().err
    )
