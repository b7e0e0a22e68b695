"""Sizes, names, shapes and frequencies as transformers' own classes have them."""

import json

import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from bench.checkpoints.presets import config_of
from shardrank.actors.model.architecture import architecture, own_name, read_architecture
from shardrank.actors.model.rope import frequencies
from tests.support.engine import TINY

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
SMALL_TEXT = {"num_hidden_layers": 1, "vocab_size": 64}


CONFIGS = {
    "tiny": json.loads((TINY / "config.json").read_text()),
    "2b": config_of("2b"),
    "8b": config_of("8b"),
    "the defaults": {"text_config": {"model_type": "qwen3_vl_text"}, "vision_config": {}},
    "no key-value heads": {
        "text_config": {"num_key_value_heads": None, "num_attention_heads": 4} | SMALL_TEXT,
        "vision_config": {"depth": 1, "deepstack_visual_indexes": [0]},
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_names_and_shapes_are_those_of_the_official_class(name):
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**CONFIGS[name]))
    expected = {own_name(key): tuple(weight.shape) for key, weight in model.state_dict().items()}
    assert architecture(CONFIGS[name]).shapes() == expected


@pytest.mark.parametrize(
    "rope",
    [
        {},
        {"rope_theta": 5_000_000},
        {"rope_scaling": {"rope_type": "default", "mrope_section": [8, 4, 4]}, "rope_theta": 1e6},
        {"rope_scaling": {"type": "default"}, "rope_theta": 1e4},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 7e5}},
        {"rope_parameters": {"rope_theta": 7e5}, "rope_theta": 3.0},
        {"rope_scaling": None, "rope_parameters": {"rope_theta": 7e5}},
        {"rope_scaling": {"rope_theta": 2e5}, "rope_parameters": {"rope_theta": 7e5}},
        {"rope_scaling": YARN, "rope_theta": 1e6},
        {"rope_parameters": YARN | {"rope_theta": 1e6}},
        {"head_dim": 64},
    ],
    ids=str,
)
def test_frequencies_are_those_of_the_official_class(rope):
    text = SMALL_TEXT | rope
    rotary = Qwen3VLTextRotaryEmbedding(Qwen3VLConfig(text_config=text).text_config)
    inverse, scale, sections = frequencies(architecture({"text_config": text}).text)
    assert torch.equal(inverse, rotary.inv_freq)
    assert (scale, sections) == (rotary.attention_scaling, rotary.mrope_section)


def test_a_size_of_another_type_is_refused_by_name(tmp_path):
    config = CONFIGS["tiny"] | {"text_config": {"hidden_size": "64"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json has hidden_size '64', where one of type"):
        read_architecture(tmp_path)


def test_an_unknown_rope_is_refused_in_one_sentence():
    text = SMALL_TEXT | {"rope_scaling": {"rope_type": "spiral"}}
    with pytest.raises(ValueError, match=r"a rope that cannot be made: KeyError\('spiral'\)"):
        frequencies(architecture({"text_config": text}).text)
