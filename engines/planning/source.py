"""What a plan is made from: a config, how its checkpoint is quantised, what of it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_trt.model.checkpoint.place import hub_name
from glm_trt.model.checkpoint.presets import PRESETS, preset_config
from glm_trt.model.config import CONFIG_FILE, ModelConfig, read_config, read_json
from glm_trt.model.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Source:
    """`name` is the argument; `stored_bytes` are those of `files` safetensors files, 0 where only a
    config is there.
    """

    name: str
    config: ModelConfig
    files: int = 0
    stored_bytes: int = 0


def find_source(argument: str | Path, hub: str | None = None) -> Source:
    """A checkpoint directory, a `config.json`, or a preset's name where no file has it. `hub` is a
    model's name on the hub, of which `argument` is a place that may have the config alone.

    Raises
    ------
    ConfigError
        If there is none, or it is not that of a model that can be planned.
    """
    path, name = Path(argument), str(argument)
    if not path.exists():
        if name not in PRESETS:
            presets = " or ".join(PRESETS)
            on_hub = hub_name(path)
            hint = f"; fetch it: hf download {on_hub} config.json --local-dir DIR" if on_hub else ""
            raise ConfigError(
                f"{name}: expected a checkpoint directory, a config.json, or {presets}; "
                f"found none{hint}"
            )
        config = ModelConfig.from_dict(preset_config(name, "full"), name)
        return Source(name, config)
    config_path = path / CONFIG_FILE if path.is_dir() else path
    data = read_config(path) if path.is_dir() else read_json(path)
    config = ModelConfig.from_dict(data, str(config_path))
    if hub is not None:
        return Source(hub, config)
    sizes = _stored(path, config, data) if path.is_dir() else []
    return Source(name, config, len(sizes), sum(sizes))


def _stored(directory: Path, config: ModelConfig, data: dict[str, Any]) -> list[int]:
    """Bytes of the files that hold the model; of all, where they are not whole yet."""
    from glm_trt.model.checkpoint.weight_files import (
        open_files,  # with numpy, which a config needs not
    )

    try:
        files = open_files(directory, config.num_hidden_layers, data.get("transformers_weights"))
        return [file.size_bytes for file in files]
    except CheckpointError:
        shards = [path for path in directory.glob("*.safetensors") if path.is_file()]
        return [shard.stat().st_size for shard in shards]
