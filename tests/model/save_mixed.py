"""Checkpoints in mixed dtypes with logits of them, by whichever transformers runs this program:

python save_mixed.py DIRECTORY SEEDS

In each folder there is a checkpoint as `save_pretrained` writes it, of every second one with some
tensors in another float dtype; `logits.pt` is what `from_pretrained` makes of it.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from checkpoints import make_oracle, reload_oracle, save
from safetensors.torch import load_file, save_file

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
IDS = torch.randint(0, 97, (2, 21), generator=torch.Generator().manual_seed(1))
SINGLE_FILE, LOGITS = "model.safetensors", "logits.pt"


def save_one(directory: Path, seed: int) -> None:
    """A checkpoint of one dense and one sparse layer, saved in a dtype, then changed by hand."""
    draw = random.Random(seed)
    save(make_oracle(seed, num_hidden_layers=2, n_routed_experts=4), directory)
    # Loaded so, a model has some modules in float32 whatever the others are in.
    loaded = type(reload_oracle(directory)).from_pretrained(
        directory, dtype=draw.choice(FLOATS[:3])
    )
    save(loaded, directory, save_original_format=draw.random() < 0.5)
    if seed % 2:
        tensors = load_file(directory / SINGLE_FILE)
        for name in draw.sample(sorted(tensors), draw.randint(1, len(tensors))):
            tensors[name] = tensors[name].to(draw.choice(FLOATS))
        save_file(tensors, directory / SINGLE_FILE)
        config = json.loads((directory / "config.json").read_text())
        config["dtype"] = draw.choice(("float32", "bfloat16", "float16"))
        (directory / "config.json").write_text(json.dumps(config))


@torch.no_grad()
def main(place: Path, seeds: int) -> None:
    """`seeds` checkpoints, in folders by their numbers."""
    for seed in range(seeds):
        directory = place / str(seed)
        save_one(directory, seed)
        torch.save(reload_oracle(directory)(IDS, use_cache=False).logits, directory / LOGITS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
