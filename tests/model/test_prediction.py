"""The MTP layer against transformers' own modules, and in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_oracle, reload_oracle, save
from quantize_checkpoint import quantize_checkpoint
from safetensors.torch import load_file
from torch import Tensor
from transformers import GlmMoeDsaConfig
from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import (
    GlmMoeDsaDecoderLayer,
    GlmMoeDsaRMSNorm,
)

import glm_trt
from glm_trt.engines.python.onnxruntime_backend import OnnxruntimeBackend
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint, model_blocks
from glm_trt.model.checkpoint import bindings as b
from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.checkpoint.weights import load_block
from glm_trt.model.glm_moe_dsa import run_block
from glm_trt.model.states import layer_states
from glm_trt.validate.running.cases import CaseOptions
from glm_trt.validate.validation import ValidationOptions, validate_bundle

TINY = Path(__file__).parent.parent / "data" / "glm-5.1-tiny"
LAYER = 6


def relative(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def oracle() -> Any:
    return reload_oracle(TINY)


def theirs(oracle: Any, hidden: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
    """What the decoder's last norm gives and the embeddings [B, S, hidden] → the layer's output and
    logits, from transformers' layer and norms with the checkpoint's weights.
    """
    weights = {k: v.float() for k, v in load_file(TINY / "model.safetensors").items()}
    of_layer = {k.removeprefix(f"model.layers.{LAYER}."): v for k, v in weights.items()
                if k.startswith(f"model.layers.{LAYER}.")}  # fmt: skip
    config = GlmMoeDsaConfig.from_pretrained(TINY)
    config._attn_implementation = config._experts_implementation = "eager"
    for name, last in (("layer_types", "indexed_attention"), ("mlp_layer_types", "sparse"),
                       ("indexer_types", "full")):  # fmt: skip
        setattr(config, name, [*getattr(config, name), last])
    layer = GlmMoeDsaDecoderLayer(config, LAYER).eval()
    experts = [[of_layer.pop(f"mlp.experts.{i}.{part}_proj.weight") for i in range(16)]
               for part in ("gate", "up", "down")]  # fmt: skip
    gate, up, down = (torch.stack(tensors) for tensors in experts)
    of_layer |= {
        "mlp.experts.gate_up_proj": torch.cat([gate, up], 1),
        "mlp.experts.down_proj": down,
    }

    def norm(x: Tensor, name: str) -> Tensor:
        module = GlmMoeDsaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        module.weight.data = of_layer.pop(f"{name}.weight")
        return module(x)

    x = torch.cat([norm(embedded, "enorm"), norm(hidden, "hnorm")], dim=-1)
    x = x @ of_layer.pop("eh_proj.weight").T
    head = {"shared_head.norm.weight": of_layer.pop("shared_head.norm.weight")}
    layer.load_state_dict(of_layer, strict=True)
    length = x.shape[1]
    positions = torch.arange(length).unsqueeze(0)
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    output = layer(x, attention_mask=mask, position_ids=positions,
                   position_embeddings=oracle.model.rotary_emb(x, positions))  # fmt: skip
    output = output[0] if isinstance(output, tuple) else output
    of_layer |= head
    return output, norm(output, "shared_head.norm") @ oracle.lm_head.weight.T


@torch.no_grad()
@pytest.mark.parametrize("absorbed", [False, True])
def test_layer_and_head_equal_transformers(oracle: Any, absorbed: bool) -> None:
    ids = torch.randint(0, 2048, (2, 40), generator=torch.Generator().manual_seed(0))
    states = oracle.model(ids[:, :-1], use_cache=False).last_hidden_state  # behind the last norm
    embedded = oracle.model.embed_tokens(ids[:, 1:])
    expected, logits = theirs(oracle, states, embedded)

    checkpoint = Checkpoint.open(TINY)
    config = checkpoint.config
    blocks = {block.name: block for block in model_blocks(checkpoint)}
    eager = {
        name: load_block(config, blocks[name].layer or "head", blocks[name].bindings, checkpoint,
                         "float32", absorbed=absorbed)
        for name in ("mtp.0", "mtp.0.head")
    }  # fmt: skip
    eager["mtp.0"].norm = torch.nn.Identity()  # transformers gives what it has normed already
    inputs = {"hidden": states, "embedded": embedded, "past_lengths": torch.zeros(2).long()}
    angles = oracle.model.rotary_emb(states, torch.arange(39).unsqueeze(0))
    half = config.qk_rope_head_dim // 2
    inputs |= {
        name: x[..., :half].expand(2, -1, -1)
        for name, x in zip(("cos", "sin"), angles, strict=True)
    }
    inputs |= {s.name: torch.zeros(s.shape(2, 39)) for s in layer_states(config, LAYER)}
    found = run_block(eager["mtp.0"], inputs)["hidden_out"]
    assert relative(found, expected) < 2e-5
    found = run_block(eager["mtp.0.head"], {"hidden": found})["logits"]
    assert relative(found, logits) < 2e-5


def test_bundle_has_the_layer_beside_the_pass(tmp_path: Path) -> None:
    export_checkpoint(TINY, tmp_path / "b", ExportOptions(dtypes=("float32",)))
    with glm_trt.load(tmp_path / "b") as runtime:
        assert isinstance(runtime.backend, OnnxruntimeBackend)
        bundle = runtime.bundle
        assert [block.name for block in bundle.prediction_blocks] == ["mtp.0", "mtp.0.head"]
        assert bundle.kinds[-1] == "mtp_sparse_indexed" and len(bundle.blocks) == 8
        assert "mtp_sparse_indexed" not in runtime.backend._sessions  # no pass needs it
        norm = bundle.prediction_blocks[1].bindings[0]
        assert norm.tensors == ("model.layers.6.shared_head.norm.weight",)


def test_checkpoint_without_the_layer_has_none_of_it(tmp_path: Path) -> None:
    """transformers drops it, and leaves the number in the config."""
    save(make_oracle(num_nextn_predict_layers=1), tmp_path / "c")
    checkpoint = Checkpoint.open(tmp_path / "c")
    assert checkpoint.config.num_nextn_predict_layers == 1
    assert [block.name for block in model_blocks(checkpoint)][-1] == "head"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the FP8 tiny checkpoint."""
    place = tmp_path_factory.mktemp("narrow")
    quantize_checkpoint(TINY, place / "c", "fp8")
    export_checkpoint(place / "c", place / "b", ExportOptions(dtypes=("float32",)))
    return place / "b"


@pytest.mark.parametrize("fault", ["eh_proj.weight", "enorm.weight", "norm.weight"])
def test_a_wrong_weight_is_found_there(
    narrow: Path, shared_walks: None, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    from glm_trt.engines.python import onnxruntime_backend

    bound = b.bound_tensor

    def wrong(binding: b.Binding, *rest: Any) -> Any:
        array = bound(binding, *rest)
        mtp = any("layers.6" in name for name in binding.tensors)
        if binding.name == fault and (mtp or fault == "norm.weight"):
            array = np.roll(array, array.shape[-1] // 2, -1)
        return array

    if fault == "norm.weight":  # of the MTP layer alone: the head's is another block's
        of_layer = onnxruntime_backend.OnnxruntimeBackend._load

        def load(self: OnnxruntimeBackend, block: Any) -> None:
            swap = wrong if block.name == "mtp.0" else bound
            monkeypatch.setattr(onnxruntime_backend, "bound_tensor", swap)
            if block.name == "mtp.0":
                self._shared.clear()
            of_layer(self, block)

        monkeypatch.setattr(OnnxruntimeBackend, "_load", load)
    else:
        monkeypatch.setattr(onnxruntime_backend, "bound_tensor", wrong)
    report = validate_bundle(narrow, ValidationOptions(cases=CaseOptions(longest=4)))
    assert [block["name"] for block in report["blocks"] if not block["ok"]] == ["mtp.0"]
