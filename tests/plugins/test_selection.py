"""Which kernels are compiled: every one that sizes within the limits can pick, and few others."""

from __future__ import annotations

import random
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from glm_trt.engines.build import wheel
from glm_trt.engines.build.engines import BuildError, BuildOptions, build_engines, needed_by
from glm_trt.engines.build.plugins import build_plugins
from glm_trt.model.errors import GlmTrtError, MissingCapabilityError
from glm_trt.plugins import build
from glm_trt.plugins import library as libraries
from glm_trt.plugins.common.aot import choices, possible_choices, variants
from glm_trt.plugins.common.bounds import bounds
from glm_trt.plugins.common.contract import Choice
from glm_trt.plugins.common.expressions import evaluate
from glm_trt.plugins.common.selection import (
    WHOLE,
    Selection,
    TensorRange,
    Use,
    make_selection,
    target_for,
)
from glm_trt.plugins.common.use_ranges import describe

# Sizes of axes and attributes: both sides of every constant, multiples of 16 and others.
SIZES = (1, 2, 3, 4, 5, 8, 15, 16, 17, 24, 31, 32, 33, 48, 64, 65, 80, 96, 128, 129, 160, 192, 256,
         257, 384, 512, 576, 1024, 2048, 4096)  # fmt: skip


def every_operator() -> list[Any]:
    return [pytest.param(launches, kernels, id=launches.contract.name) for launches, kernels in
            build.load_launches()]  # fmt: skip


def random_names(launches: Any, numbers: random.Random) -> dict[str, int]:
    """Names of a call within the operator's limits; what derives from others does so."""
    contract = launches.contract
    for _ in range(20000):
        few = [numbers.choice(SIZES) for _ in range(3)]
        names = {}
        for name, kind in contract.attributes.items():
            if isinstance(kind, Choice):
                names[name] = numbers.randrange(len(kind.values))
            elif kind is int:
                names[name] = numbers.choice([0, 1, *few])
        for port in contract.inputs:
            if port.optional:
                names[f"has_{port.name}"] = numbers.randrange(2)
            names |= {axis: numbers.choice([*few, 1, 2]) for axis in port.axes}
        if "kv_num_heads" in names:  # widths that heads divide
            heads, group = numbers.choice((1, 2, 4)), numbers.choice((1, 2))
            key = numbers.choice([of for of in SIZES if of <= 256])
            names |= {"kv_num_heads": heads, "q_num_heads": heads * group, "KW": heads * key,
                      "QW": heads * group * key, "VW": heads * few[0], "R": heads,
                      "G": heads * numbers.choice((1, key))}  # fmt: skip
        names["ITEMSIZE"] = numbers.choice((2, 4))
        try:
            for axis, expression in contract.derived.items():
                names[axis] = evaluate(expression, names)
            if all(evaluate(expression, names) for expression, _ in launches.limits):
                return names
        except ValueError:
            continue
    raise AssertionError(f"{contract.name}: no sizes within the limits were found")


@pytest.mark.parametrize(("launches", "kernels"), every_operator())
def test_whatever_limits_allow_has_its_kernel(launches: Any, kernels: Any) -> None:
    """The choice that a launch makes is one of those compiled; so is the narrowed choice."""
    numbers = random.Random(0)
    for _ in range(60):
        names = random_names(launches, numbers)
        ranges = {
            name: (value, value) if numbers.randrange(2) else (value // 2, value * 2)
            for name, value in names.items()
        }
        for launch in launches.steps:
            config = launch.config("sm80", "bfloat16")
            if not evaluate(launch.when, names | config):
                continue
            made = (tuple(launch.picked(names).items()),
                    bool(launch.aligned) and launch.is_aligned(names))  # fmt: skip
            assert made in choices(launch)
            assert made in possible_choices(launch, ranges), (names, ranges)


def test_bounds_hold_what_is_inside() -> None:
    numbers = random.Random(1)
    for launches, _ in build.load_launches():
        written = [size for launch in launches.steps for size in (*launch.grid, launch.when)]
        written += [buffer.elements for buffer in launches.workspace]
        for _ in range(15):
            names = random_names(launches, numbers)
            blocks = {name: 16 for launch in launches.steps for config in launch.configs.values()
                      for name in config}  # fmt: skip
            ranges = {n: (max(v - numbers.choice(SIZES), 0), v + numbers.choice(SIZES))
                      for n, v in (blocks | names).items()}  # fmt: skip
            for expression in written:
                low, high = bounds(expression, ranges)
                assert low <= evaluate(expression, blocks | names) <= high


def test_bounds_decide_what_is_decided() -> None:
    assert bounds("min(64, C) > 32 and T <= 16", {"C": (64, 4096), "T": (1, 16)}) == (1, 1)
    assert bounds("128 // max(1, B * S)", {"B": (1, 1), "S": (2, 512)}) == (0, 64)
    assert bounds("cdiv(T, N) % 7", {"T": (30, 30), "N": (4, 8)}) == (0, 6)
    assert bounds("cdiv(T, N) % 9", {"T": (30, 30), "N": (4, 8)}) == (4, 8)
    assert bounds("T % 16 == 0", {"T": (15, 33)}) == (0, 1)
    assert bounds("not (T > 16)", {"T": (17, 20)}) == (0, 0)


def routing(tokens: tuple[int, int], experts: int = 64) -> Use:
    logits = TensorRange("float32", (tokens, (experts, experts)))
    bias = TensorRange("float32", ((experts, experts),))
    attributes = {"top_k": 4, "n_group": 1, "topk_group": 1, "norm_topk_prob": 1}
    return Use("MoeRouting", (logits, bias), tuple(sorted(attributes.items())))


def test_selection_says_what_it_lacks() -> None:
    one = make_selection(["sm89"], [routing((1, 512))])
    assert Selection.from_json(one.to_json()) == one and not one.whole and WHOLE.whole
    assert one.lacks(make_selection(["sm89"], [routing((2, 8))])) is None
    assert one.lacks(make_selection(["sm90"], [routing((2, 8))])) == "kernels for sm90"
    assert "MoeRouting (float32)" in str(one.lacks(make_selection(["sm89"], [routing((1, 513))])))
    assert "MoeRouting" in str(one.lacks(make_selection(["sm89"], [routing((1, 8), 65)])))
    assert one.lacks(Selection(("sm89",))) == "kernels for every size"
    assert WHOLE.lacks(one) is None and target_for(86) == "sm80"
    launches = import_module("glm_trt.plugins.moe_routing.launch").LAUNCHES
    types, ranges = describe(launches.contract, routing((1, 512)))
    assert (types.activation, ranges["T"], ranges["k"]) == ("float32", (1, 512), (4, 4))


def test_bundle_needs_few_kernels(tiny_bundle: Path) -> None:
    needed = needed_by(tiny_bundle, BuildOptions(targets=("sm86", "sm80", "sm89")))
    assert needed.targets == ("sm80", "sm89")
    made = {
        of
        for launches, kernels in build.load_launches()
        for of in variants(launches, kernels, needed)
    }
    functions = {of.function for of in made}
    assert {"score_positions", "attend_selected", "route_tokens", "down_tiles"} <= functions
    # Nothing is split over so few positions, nothing is quantised, nothing is float16.
    assert not functions & {"combine_splits", "fp8_linear_rows", "convolve", "attend_causal"}
    assert len(made) < 60 and not [of for of in made if "*fp16" in dict(of.signature).values()]


def test_partial_library_is_no_whole_one(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    assert libraries.selection_of(library) == Selection(("sm80",))
    monkeypatch.setattr(libraries, "__file__", str(library.parent / "library.py"))
    with pytest.raises(MissingCapabilityError, match="holds only some of the kernels; build the"):
        libraries.find_library()
    (tmp_path / "include").mkdir()
    with pytest.raises(MissingCapabilityError, match="holds only some of the kernels"):
        wheel.build_wheel(tmp_path / "dist", wheel.Libraries(library, tmp_path))
    with pytest.raises(MissingCapabilityError, match="lacks kernels for sm120; build one"):
        build_engines(tiny_bundle, BuildOptions(targets=("sm120",), plugins=library))


def test_other_files_are_no_library(tmp_path: Path) -> None:
    for content in (b"", b"\x7fELF"):
        (tmp_path / "some.so").write_bytes(content)
        path = libraries.find_library(tmp_path / "some.so")
        with pytest.raises(GlmTrtError, match="not a plugin library of this version") as error:
            libraries.selection_of(path)
        assert error.value.exit_code == 2


def test_current_library_is_taken(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch,
                                  tmp_path: Path) -> None:  # fmt: skip
    """Neither is torch's side loaded nor anything compiled where the library is up to date."""
    options = BuildOptions(targets=("sm80",))
    needed = needed_by(tiny_bundle, options)
    place = libraries.library_place(tmp_path, needed)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"the library")
    key = f"{libraries.build_key(needed)} {libraries.sha256_of(place)}"
    place.with_suffix(".key").write_text(key)

    def refuse(*_: Any, **__: Any) -> None:
        raise BuildError("compiled")

    monkeypatch.setattr(build, "build_library", refuse)
    assert build_plugins(tiny_bundle, options, tmp_path) == place
    place.write_bytes(b"another")
    with pytest.raises(BuildError, match="compiled"):
        build_plugins(tiny_bundle, options, tmp_path)
