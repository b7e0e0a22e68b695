import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shardrank.actors.config import RerankerConfig
from shardrank.actors.model.checkpoint import resolve_checkpoint
from shardrank.actors.model.model import load_model
from shardrank.actors.preprocessor import Preprocessor
from shardrank.actors.scorer import Scorer
from tests.support.engine import TINY

Change = Callable[[Path], None]
LAYER = "model.language_model.layers.0"
DOWN = f"{LAYER}.mlp.down_proj.weight"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may change."""
    return shutil.copytree(TINY, tmp_path / "checkpoint")


def config(**values: Any) -> Change:
    def change(checkpoint: Path) -> None:
        path = checkpoint / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def part(name: str, part: str = "", **values: Any) -> Change:
    """A file of JSON with other values, in a part of it."""

    def change(checkpoint: Path) -> None:
        content = json.loads((checkpoint / name).read_text())
        (content[part] if part else content).update(values)
        (checkpoint / name).write_text(json.dumps(content))

    return change


def file(name: str, content: bytes = b"{}") -> Change:
    def change(checkpoint: Path) -> None:
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_bytes(content)

    return change


def tensors(**added: torch.Tensor) -> Change:
    def change(checkpoint: Path) -> None:
        path = checkpoint / "model.safetensors"
        save_file(load_file(path) | added, path, metadata={"format": "pt"})

    return change


def renamed(pattern: str, new: str) -> Change:
    def change(checkpoint: Path) -> None:
        path = checkpoint / "model.safetensors"
        weights = {re.sub(pattern, new, name): each for name, each in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})

    return change


def dense_module(checkpoint: Path) -> None:
    modules = [{"path": "", "type": "Transformer"}, {"path": "2_Dense", "type": "Dense"}]
    file("modules.json", json.dumps(modules).encode())(checkpoint)
    file("2_Dense/model.safetensors")(checkpoint)


ONE, ROW = torch.ones(1), torch.ones(1, 64)
EIGHT_BITS = torch.ones(64, 128, dtype=torch.float8_e4m3fn)
FOREIGN = {
    "an adapter's configuration": (file("adapter_config.json"), "adapter_config.json is an adap"),
    "an adapter's weights": (
        file("adapter_model.safetensors"),
        "adapter_model.safetensors is an adapter",
    ),
    "an adapter's pickled weights": (file("adapter_model.bin"), "adapter_model.bin is an adapter"),
    "unmerged LoRA": (
        tensors(**{f"{LAYER}.self_attn.q_proj.lora_A.default.weight": ROW}),
        f"holds {LAYER}.self_attn.q_proj.lora_A.default.weight, an adapter's tensor",
    ),
    "LoRA around a base layer": (
        renamed("q_proj.weight", "q_proj.base_layer.weight"),
        f"holds {LAYER}.self_attn.q_proj.base_layer.weight, an adapter's tensor",
    ),
    "DoRA": (
        tensors(**{f"{LAYER}.self_attn.q_proj.lora_magnitude_vector": ONE}),
        "q_proj.lora_magnitude_vector, an adapter's tensor",
    ),
    "bitsandbytes": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "config.json has a quantization_config (bitsandbytes)",
    ),
    "quantised text": (
        config(text_config={"quantization_config": {"quant_method": "gptq"}}),
        "quantization_config (gptq)",
    ),
    "compressed-tensors": (config(compression_config={"format": "x"}), "a quantization_config ("),
    "fp8 scales without a word in the configuration": (
        tensors(**{DOWN: EIGHT_BITS, f"{DOWN}_scale_inv": ONE}),
        f"holds {DOWN}_scale_inv, a quantised module's tensor",
    ),
    "fp8 weights alone": (tensors(**{DOWN: EIGHT_BITS}), f"holds {DOWN} in F8_E4M3"),
    "8-bit integers": (tensors(**{DOWN: EIGHT_BITS.to(torch.int8)}), f"holds {DOWN} in I8"),
    "GPTQ": (
        tensors(**{f"{LAYER}.mlp.down_proj.qweight": ONE}),
        f"holds {LAYER}.mlp.down_proj.qweight, a quantised module's tensor",
    ),
    "4 bits of bitsandbytes": (
        tensors(**{f"{DOWN}.absmax": ONE}),
        f"holds {DOWN}.absmax, a quantised module's tensor",
    ),
    "a score head": (tensors(**{"score.weight": ROW}), "holds score.weight, another head than"),
    "a classifier": (
        tensors(**{"classifier.weight": ROW, "classifier.bias": ONE}),
        "holds classifier.bias, another head than",
    ),
    "a class with another head": (
        config(architectures=["Qwen3VLForSequenceClassification"]),
        "config.json names the architecture Qwen3VLForSequenceClassification",
    ),
    "a layer after the model": (dense_module, "2_Dense/model.safetensors holds weights of a mod"),
    "a bias that nobody reads": (tensors(**{"lm_head.bias": ONE}), "holds lm_head.bias, which a"),
    "more layers than the configuration says": (
        tensors(**{"model.language_model.layers.4.input_layernorm.weight": torch.ones(64)}),
        "holds model.language_model.layers.4.input_layernorm.weight, which a Qwen3-VL-Reranker",
    ),
    "one weight under two names": (
        tensors(**{DOWN.removeprefix("model."): torch.zeros(64, 128)}),
        f"holds {DOWN}, which",
    ),
    "another activation": (
        part("config.json", "text_config", hidden_act="gelu"),
        "config.json has hidden_act 'gelu': a Qwen3-VL-Reranker has 'silu'",
    ),
    "another activation of the vision tower": (
        part("config.json", "vision_config", hidden_act="gelu"),
        "config.json has hidden_act 'gelu'",
    ),
    "pixels of another mean": (
        part("preprocessor_config.json", image_mean=[0.48, 0.46, 0.41]),
        "preprocessor_config.json has image_mean [0.48, 0.46, 0.41]",
    ),
    "a pointer for a tokenizer": (
        file("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n"),
        "tokenizer.json cannot be read",
    ),
    "a second weights file": (file("extra.safetensors"), "extra.safetensors belongs to no weights"),
    "a shard that is not there": (
        lambda checkpoint: (
            (checkpoint / "model.safetensors").rename(checkpoint / "a.safetensors")
            and file("model.safetensors.index.json", b'{"weight_map": {"x": "b.safetensors"}}')(
                checkpoint
            )
        ),
        "a.safetensors belongs to no weights that are loaded: b.safetensors does",
    ),
}


@pytest.mark.parametrize("half", [Preprocessor, Scorer])
@pytest.mark.parametrize("what", FOREIGN)
def test_what_would_score_as_another_model_is_refused_by_name(
    copy: Path, what: str, half: Callable[[RerankerConfig], object]
) -> None:
    change, sentence = FOREIGN[what]
    change(copy)
    with pytest.raises(ValueError, match=re.escape(sentence)) as refusal:
        half(RerankerConfig(str(copy)))
    assert "\n" not in str(refusal.value) and str(copy) in str(refusal.value)


def test_what_the_checks_before_did_not_know_is_refused_while_loading(copy: Path) -> None:
    tensors(**{"score.weight": ROW})(copy)
    with pytest.raises(ValueError, match=r"holds score\.weight, another head"):
        load_model(copy, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("name", ["text_config", "vision_config"])
def test_half_a_config_is_refused_before_a_model_of_other_sizes_is_made(
    copy: Path, name: str
) -> None:
    config(**{name: None})(copy)
    with pytest.raises(ValueError, match=f"config.json has no {name}"):
        load_model(copy, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    "change",
    [
        renamed("^model[.]", ""),
        config(architectures=None),
        config(quantization_config=None),
        config(quantization_config={}),
        file("pytorch_model.bin"),
        file("chat_template.jinja"),
        file("modules.json", b'[{"path": ""}, {"path": "1_LogitScore"}]'),
    ],
)
def test_what_loads_as_it_was_meant_is_loaded(copy: Path, change: Change) -> None:
    change(copy)
    assert resolve_checkpoint(RerankerConfig(str(copy))) == copy


def test_shards_are_loaded(copy: Path) -> None:
    path = copy / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    halves = dict(list(weights.items())[:60]), dict(list(weights.items())[60:])
    places = {}
    for number, half in enumerate(halves):
        name = f"model-{number}.safetensors"
        save_file(half, copy / name, metadata={"format": "pt"})
        places |= dict.fromkeys(half, name)
    index = {"metadata": {}, "weight_map": places}
    file("model.safetensors.index.json", json.dumps(index).encode())(copy)
    assert resolve_checkpoint(RerankerConfig(str(copy))) == copy
    load_model(copy, torch.device("cpu"), torch.float32)
