"""Faults of weights that no text reaches, or that are smaller than rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
from faults import Faulty, exchange, fault


@fault("plain", "embedding", "Gather", slow=True)
def an_embedding_that_no_text_uses(bundle: Faulty) -> None:
    """The last row, which no case has: cases are drawn, and one id of 97 may be anywhere."""

    def edit(w: Any) -> Any:
        w[-1, 0] += 1
        return w

    bundle.weight("embedding", "embed_tokens.weight", edit)


@fault("plain", "layer.2", "Gemm")
def one_weight_an_ulp_low(bundle: Faulty) -> None:
    def edit(w: Any) -> Any:
        w[3, 2] = np.nextafter(np.float32(w[3, 2]), np.float32(0))
        return w

    bundle.weight("layer.2", "mlp.shared_experts.up_proj.weight", edit)


@fault("plain", "layer.1", "MoeExperts", slow=True)
def one_expert_an_ulp_low(bundle: Faulty) -> None:
    def edit(w: Any) -> Any:
        w[-1] = np.nextafter(w[-1].astype(np.float32), np.float32(0))
        return w

    bundle.weight("layer.1", "mlp.experts.down_proj", edit)


@fault("plain", "layer.1", "RMSNormalization")
def norms_of_two_layers_exchanged(bundle: Faulty) -> None:
    exchange(bundle, "input_layernorm.weight")


@fault("fp8", "layer.1", "Fp8MoeExperts", slow=True)
def one_fp8_code_off(bundle: Faulty) -> None:
    def edit(codes: Any) -> Any:
        codes[-1, 0, 0] ^= 1
        return codes

    bundle.weight("layer.1", "mlp.experts.down_proj", edit)


@fault("nvfp4", "layer.1", "Nvfp4MoeExperts", slow=True)
def one_nvfp4_nibble_off(bundle: Faulty) -> None:
    def edit(codes: Any) -> Any:
        codes[-1, 0, 0] ^= 1
        return codes

    bundle.weight("layer.1", "mlp.experts.down_proj", edit)


@fault("hybrid", "layer.0", "Exp", slow=True)
def a_decay_an_ulp_low(bundle: Faulty) -> None:
    def edit(w: Any) -> Any:
        w[0] = np.nextafter(np.float32(w[0]), np.float32(0))
        return w

    bundle.weight("layer.0", "linear_attn.A_log", edit)
