"""Make `glm-5.1-dialogue`: a small trained checkpoint that reasons and calls tools.

    OMP_NUM_THREADS=1 python tests/data/make_dialogue_checkpoint.py build/glm-5.1-dialogue

Needs what the tests need (torch, transformers, tokenizers, safetensors), 3 GB of memory and, at
half a second a step, 35 minutes of one core. What is drawn follows from `--seed`, and so does the
result, but for rounding: with another torch or another processor the weights differ. `--state`
names a file that training is continued from after a cut. How the stored one was made is told in
README.md.

The model learns the dialogues of `tests/support/dialogues.py`. The indexer's selection passes no
gradient, and dialogues are no longer than `index_topk`, where it selects every position; so
training leaves it out, and it stays as it was drawn. Attention to longer prompts is sparse, at
random.
The prediction (MTP) layer is trained at last, on the model as it is then.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import GlmMoeDsaConfig, GlmMoeDsaForCausalLM
from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as modeling

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import dialogues as d

VOCABULARY, LAYERS, EXPERTS = 1280, 4, 8
# Runs of brackets, quotes and commas are one piece, so that a tool's JSON is short. Capitalised
# words stand without the space before them: names are the same tokens wherever they occur.
PIECES = (
    r" ?\p{Ll}+|_\p{Ll}+|\p{Lu}+\p{Ll}*|\p{L}|\p{N}"
    r'|["{}\[\]:,]+(?: ["{}\[\]:,]+)*| ?[^\s\p{L}\p{N}"{}\[\]:,_]+|\s+|_'
)
TOKENS_A_BATCH, POOL, LONGEST = 4800, 400, 512
# Of what is not the assistant's, structure is worth learning a little: names occur twice in it.
OTHERS_WEIGHT = 0.05


def make_tokenizer(seed: int) -> Tokenizer:
    """A byte-level BPE, trained on dialogues, with GLM's special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(name, special=True, normalized=False) for name in d.SPECIAL]
    added += [AddedToken(name, special=False, normalized=False) for name in d.MARKS]
    random = Random(f"tokenizer {seed}")
    texts = []
    for _ in range(3000):
        for piece in d.segments(d.draw(random)):
            text = piece.text
            for name in d.SPECIAL + d.MARKS:
                text = text.replace(name, "\n")
            texts.append(text)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=added,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The trainer marks all of its tokens special; those for thinking and tools are not.
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["content"] in d.SPECIAL
    return Tokenizer.from_str(json.dumps(content))


def make_config(tokenizer: Tokenizer) -> GlmMoeDsaConfig:
    stops = [tokenizer.token_to_id(name) for name in (d.END, d.USER, d.OBSERVATION)]
    config = GlmMoeDsaConfig(
        vocab_size=VOCABULARY, hidden_size=192, intermediate_size=384, moe_intermediate_size=64,
        num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=4, n_shared_experts=1,
        n_routed_experts=EXPERTS, num_experts_per_tok=2, first_k_dense_replace=1, n_group=1,
        topk_group=1, kv_lora_rank=64, q_lora_rank=96, qk_rope_head_dim=16, qk_nope_head_dim=32,
        v_head_dim=48, head_dim=16, index_topk=LONGEST, index_head_dim=32, index_n_heads=4,
        max_position_embeddings=4096, initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        bos_token_id=None, eos_token_id=stops, pad_token_id=stops[0],
    )  # fmt: skip
    config._attn_implementation, config._experts_implementation = "causal", "eager"
    return config


class Batch(NamedTuple):
    """ids and weights [B, S]: the weight of each token as a target, 0 behind a row's end."""

    ids: Tensor
    weights: Tensor


def encoded(tokenizer: Tokenizer, dialogue: d.Dialogue) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    weights: list[float] = []
    for piece in d.segments(dialogue):
        new = tokenizer.encode(piece.text, add_special_tokens=False).ids
        ids += new
        weights += [1.0 if piece.sampled else OTHERS_WEIGHT] * len(new)
    return ids, weights


def batches(tokenizer: Tokenizer, seed: str, easy: int) -> Iterator[Batch]:
    """Without end: dialogues of like length together. The first `easy` only repeat words, which is
    what calls are made of and is learned sooner from short dialogues; later three in ten do.
    """
    count = 0
    for number in range(1 << 30):
        random = Random(f"{seed} {number}")
        repeating = 1.0 if count < easy else 0.3
        drawn = [
            d.draw_repetition(random) if random.random() < repeating else d.draw(random)
            for _ in range(POOL)
        ]
        all_rows = (encoded(tokenizer, dialogue) for dialogue in drawn)
        rows = sorted((r for r in all_rows if len(r[0]) <= LONGEST), key=lambda r: len(r[0]))
        made: list[Batch] = []
        while rows:
            longest = len(rows[-1][0])
            part = [rows.pop() for _ in range(min(len(rows), max(1, TOKENS_A_BATCH // longest)))]
            ids, weights = torch.zeros(len(part), longest).long(), torch.zeros(len(part), longest)
            for i, (row, of_row) in enumerate(part):
                ids[i, : len(row)] = torch.tensor(row)
                weights[i, : len(row)] = torch.tensor(of_row)
            made.append(Batch(ids, weights))
        random.shuffle(made)
        for batch in made:
            count += 1
            yield batch


def every_position(indexer: Any, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    """What the indexer selects of no more than `index_topk` positions, without computing it."""
    batch, length, _ = hidden.shape
    if length > indexer.index_topk:
        raise ValueError(f"a dialogue of {length} tokens, above index_topk {indexer.index_topk}")
    return torch.arange(length, dtype=torch.int32).expand(batch, length, length)


def causal_attention(
    _: Any, query: Tensor, key: Tensor, value: Tensor, *__: Any, scaling: float, **___: Any
) -> tuple[Tensor, None]:
    """Attention to every earlier position, as transformers calls it. On a CPU these products are
    faster than torch's own attention.
    """
    batch, heads, length, _ = query.shape
    above = torch.full((length, length), float("-inf"), dtype=value.dtype).triu(1)
    query, key, value = (x.flatten(0, 1).to(value.dtype) for x in (query * scaling, key, value))
    with torch.autocast("cpu", enabled=False):
        weights = torch.softmax(query.bmm(key.transpose(1, 2)) + above, dim=-1)
        output = weights.bmm(value).unflatten(0, (batch, heads))
    return output.transpose(1, 2), None


def train_densely() -> None:
    """Change transformers' model, of any config of `make_config`, for what training needs."""
    modeling.GlmMoeDsaIndexer.forward = every_position
    modeling.ALL_ATTENTION_FUNCTIONS.register("causal", causal_attention)


# Where transformers wants a mask: attention to every earlier position has none.
NO_MASK = torch.zeros(1, 1, 1, 1)


def loss_of(logits: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """logits [B, S, V] for targets ids and weights [B, S]."""
    losses = F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


class Balance:
    """Keeps experts in use, as DeepSeek-V3 does: a bias on the choice rises where load is low."""

    def __init__(self, module: nn.Module, speed: float = 0.002) -> None:
        self.speed, self.loads = speed, dict[Any, Tensor]()
        for part in module.modules():
            if isinstance(part, modeling.GlmMoeDsaTopkRouter):
                part.register_forward_hook(self._count)

    def _count(self, router: Any, _: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        self.loads[router] = torch.bincount(output[2].flatten(), minlength=EXPERTS).float()

    def update(self) -> None:
        for router, load in self.loads.items():
            router.e_score_correction_bias += self.speed * torch.sign(load.mean() - load)


class Trainer:
    """AdamW with a warm-up and a cosine down to nothing."""

    def __init__(self, module: nn.Module, steps: int, rate: float) -> None:
        self.module, self.steps, self.rate = module, steps, rate
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        matrices = [p for p in self.parameters if p.ndim > 1]
        vectors = [p for p in self.parameters if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.05},
                  {"params": vectors, "weight_decay": 0.0}]  # fmt: skip
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-9)
        self.balance = Balance(module)
        self.step = 0
        self.started, self.shown = time.process_time(), float("nan")

    def update(self, loss: Tensor) -> None:
        warm = min(1.0, (self.step + 1) / 100)
        rate = (
            self.rate * warm * (0.02 + 0.98 * math.cos(self.step / self.steps * math.pi / 2) ** 2)
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.balance.update()
        self.step += 1
        value = loss.item()
        self.shown = value if math.isnan(self.shown) else 0.95 * self.shown + 0.05 * value
        if self.step % 50 == 0:
            spent = time.process_time() - self.started
            print(
                f"{self.step:5} of {self.steps}: loss {self.shown:.4f}, {spent:.0f} s", flush=True
            )


def train(model: Any, tokenizer: Tokenizer, seed: int, steps: int, state: Path | None) -> None:
    trainer = Trainer(model, steps, rate=2e-3)
    if state is not None and state.exists():
        kept = torch.load(state)
        model.load_state_dict(kept["model"])
        trainer.optimizer.load_state_dict(kept["optimizer"])
        trainer.step = kept["step"]
    source = islice(batches(tokenizer, f"train {seed}", steps // 8), trainer.step, steps)
    for ids, weights in source:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mask = {"indexed_attention": NO_MASK}
            logits = model(ids[:, :-1], attention_mask=mask, use_cache=False).logits
        trainer.update(loss_of(logits, ids[:, 1:], weights[:, 1:]))
        if state is not None and trainer.step % 100 == 0:
            kept = {"model": model.state_dict(), "optimizer": trainer.optimizer.state_dict(),
                    "step": trainer.step}  # fmt: skip
            torch.save(kept, state.with_suffix(".new"))
            state.with_suffix(".new").replace(state)


class Prediction(nn.Module):
    """The MTP layer, of transformers' own modules."""

    def __init__(self, config: GlmMoeDsaConfig) -> None:
        super().__init__()
        longer = GlmMoeDsaConfig.from_dict(config.to_dict())
        longer._attn_implementation, longer._experts_implementation = "causal", "eager"
        for name in ("layer_types", "mlp_layer_types", "indexer_types"):
            setattr(longer, name, [*getattr(longer, name), getattr(longer, name)[-1]])
        self.layer = modeling.GlmMoeDsaDecoderLayer(longer, LAYERS)
        width, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = modeling.GlmMoeDsaRMSNorm(width, eps)
        self.hnorm = modeling.GlmMoeDsaRMSNorm(width, eps)
        self.eh_proj = nn.Linear(2 * width, width, bias=False)
        self.norm = modeling.GlmMoeDsaRMSNorm(width, eps)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=config.initializer_range)

    def forward(self, model: Any, ids: Tensor) -> Tensor:
        """ids [B, S] → logits [B, S - 2, vocab] for all but the first two."""
        with torch.no_grad():
            mask = {"indexed_attention": NO_MASK}
            decoded = model.model(ids[:, :-2], attention_mask=mask, use_cache=False)
            embedded = model.model.embed_tokens(ids[:, 1:-1])
        x = self.eh_proj(
            torch.cat([self.enorm(embedded), self.hnorm(decoded.last_hidden_state)], dim=-1)
        )
        positions = torch.arange(x.shape[1]).unsqueeze(0)
        angles = model.model.rotary_emb(x, positions)
        x, _ = self.layer(x, attention_mask=NO_MASK, position_ids=positions,
                          position_embeddings=angles)  # fmt: skip
        return F.linear(self.norm(x), model.lm_head.weight)


def train_prediction(model: Any, tokenizer: Tokenizer, seed: int, steps: int) -> Prediction:
    model.requires_grad_(False)
    prediction = Prediction(model.config)
    trainer = Trainer(prediction, steps, rate=2e-3)
    for ids, weights in islice(batches(tokenizer, f"prediction {seed}", 0), steps):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = prediction(model, ids)
        trainer.update(loss_of(logits, ids[:, 2:], weights[:, 2:]))
    return prediction


def published_tensors(model: Any, prediction: Prediction) -> dict[str, Tensor]:
    """All weights by the published model's names, one tensor per expert, in bfloat16."""
    tensors = dict(model.state_dict())
    renamed = {"norm.": "shared_head.norm.", "layer.": ""}
    for name, tensor in prediction.state_dict().items():
        for before, after in renamed.items():
            if name.startswith(before):
                name = after + name.removeprefix(before)
                break
        tensors[f"model.layers.{LAYERS}.{name}"] = tensor
    for name in [n for n in tensors if ".experts." in n]:
        stacked, place = tensors.pop(name), name[: name.index(".experts.") + len(".experts.")]
        parts = {"down_proj": stacked}
        if name.endswith("gate_up_proj"):
            gate, up = stacked.chunk(2, dim=1)
            parts = {"gate_proj": gate, "up_proj": up}
        for part, of_experts in parts.items():
            for i, tensor in enumerate(of_experts):
                tensors[f"{place}{i}.{part}.weight"] = tensor
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}


def write(directory: Path, tokenizer: Tokenizer, model: Any, prediction: Prediction) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    save_file(published_tensors(model, prediction), directory / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    config = model.config.to_dict() | {
        "architectures": ["GlmMoeDsaForCausalLM"],
        "dtype": "bfloat16",
        "num_nextn_predict_layers": 1,
    }
    generation = {"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]}
    of_tokenizer = {
        "tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "eos_token": d.END,
        "pad_token": d.END, "model_max_length": config["max_position_embeddings"],
        "padding_side": "left", "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    for name, content in (("config.json", config), ("generation_config.json", generation),
                          ("tokenizer_config.json", of_tokenizer)):  # fmt: skip
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
        (directory / name).write_text(text + "\n")
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("directory", type=Path, help="what is written")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--prediction-steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, help="written at times, continued from if there")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    train_densely()
    tokenizer = make_tokenizer(arguments.seed)
    model = GlmMoeDsaForCausalLM(make_config(tokenizer)).train()
    train(model, tokenizer, arguments.seed, arguments.steps, arguments.state)
    prediction = train_prediction(model, tokenizer, arguments.seed, arguments.prediction_steps)
    write(arguments.directory, tokenizer, model, prediction)


if __name__ == "__main__":
    main()
