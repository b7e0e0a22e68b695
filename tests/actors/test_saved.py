"""Checkpoints in the forms in which trainers and quantisers save them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shardrank.actors import Embedder, Reranker, RerankerConfig
from shardrank.actors.config import EmbeddingOptions
from shardrank.actors.model.checkpoint import checkpoint_fingerprint
from tests.support.engine import GOLDEN, TINY

TIED = GOLDEN / "text-reranker" / "tiny-tied"
LAYOUTS = GOLDEN / "text-reranker" / "st-layouts"
QUERY, DOCUMENTS = "What is the capital of China?", ["Beijing", "the powerhouse of the cell"]
SETTINGS = "config_sentence_transformers.json"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A text reranker as sentence-transformers saves it."""
    folder = shutil.copytree(TIED, tmp_path / "model")
    return shutil.copytree(LAYOUTS / "causal", folder, dirs_exist_ok=True)


def change(file: Path, **values: Any) -> None:
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(known | values))


@pytest.mark.parametrize("layout", ["causal", "chat"])
def test_what_sentence_transformers_saved_scores_as_it_did_before(saved: Path, layout: str) -> None:
    shutil.copytree(LAYOUTS / layout, saved, dirs_exist_ok=True)
    assert Reranker(str(saved)).score(QUERY, DOCUMENTS) == pytest.approx(
        Reranker(str(TIED)).score(QUERY, DOCUMENTS), abs=1e-6
    )


def test_a_saved_classifier_scores_as_it_did_before(tmp_path: Path) -> None:
    plain = GOLDEN / "text-reranker" / "tiny-seq-cls"
    folder = shutil.copytree(plain, tmp_path / "model")
    shutil.copytree(LAYOUTS / "seq-cls", folder, dirs_exist_ok=True)
    assert Reranker(str(folder)).score(QUERY, DOCUMENTS) == pytest.approx(
        Reranker(str(plain)).score(QUERY, DOCUMENTS), abs=1e-6
    )


def test_two_labels_are_no_and_yes(tmp_path: Path) -> None:
    plain = GOLDEN / "text-reranker" / "tiny-seq-cls"
    folder = shutil.copytree(plain, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    row = weights["score.weight"]
    weights["score.weight"] = torch.cat((-row / 4, row * 3 / 4))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    change(folder / "config.json", id2label={"0": "no", "1": "yes"})
    assert Reranker(str(folder)).score(QUERY, DOCUMENTS) == pytest.approx(
        Reranker(str(plain)).score(QUERY, DOCUMENTS), abs=1e-6
    )


def test_labels_by_name_may_stand_the_other_way_round(tmp_path: Path) -> None:
    plain = GOLDEN / "text-reranker" / "tiny-seq-cls"
    folder = shutil.copytree(plain, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    row = weights["score.weight"]
    weights["score.weight"] = torch.cat((row, torch.zeros_like(row)))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    change(folder / "config.json", id2label={"0": "Yes", "1": "No"})
    assert Reranker(str(folder)).score(QUERY, DOCUMENTS) == pytest.approx(
        Reranker(str(plain)).score(QUERY, DOCUMENTS), abs=1e-6
    )


@pytest.mark.parametrize(
    "prompts",
    [{"query": "query: "}, {"document": "passage: "}, {"query": "Instruct: Find it\nQuery: "}],
)
def test_an_embedders_prompts_of_another_form_are_refused(
    tmp_path: Path, prompts: dict[str, str]
) -> None:
    folder = shutil.copytree(GOLDEN / "text-embedding" / "tiny", tmp_path / "model")
    change(folder / SETTINGS, prompts=prompts)
    with pytest.raises(ValueError, match="has the prompts"):
        Embedder(str(folder))


def test_a_fingerprint_has_the_tokens_that_score(saved: Path) -> None:
    before = checkpoint_fingerprint(saved)
    change(saved / "1_LogitScore" / "config.json", true_token_id=2152, false_token_id=4000)
    after = checkpoint_fingerprint(saved)
    assert {name for name in after if after[name] != before[name]} == {"saved"}


def test_the_tokens_of_a_logit_score_are_those_that_score(saved: Path) -> None:
    (before,) = Reranker(str(saved)).score(QUERY, DOCUMENTS[:1])
    change(saved / "1_LogitScore" / "config.json", true_token_id=2152, false_token_id=4000)
    assert Reranker(str(saved)).score(QUERY, DOCUMENTS[:1]) == pytest.approx([1 - before])
    change(saved / "1_LogitScore" / "config.json", false_token_id=None)
    assert Reranker(str(saved)).score(QUERY, DOCUMENTS[:1]) != pytest.approx([1 - before])
    shutil.rmtree(saved / "1_LogitScore")  # as the 8B was published: its folder had another name
    assert Reranker(str(saved)).score(QUERY, DOCUMENTS[:1]) == pytest.approx([before])


def test_the_saved_prompt_is_the_instruction_unless_another_is_given(saved: Path) -> None:
    plain = Reranker(str(TIED)).score(QUERY, DOCUMENTS, "Find code.")
    change(saved / SETTINGS, prompts={"code": "Find code."}, default_prompt_name="code")
    model = Reranker(str(saved))
    assert model.config.instruction == "Find code."
    assert model.score(QUERY, DOCUMENTS) == pytest.approx(plain)
    other = model.score(QUERY, DOCUMENTS, "Find prose.")
    assert other == pytest.approx(Reranker(str(TIED)).score(QUERY, DOCUMENTS, "Find prose."))


def test_an_embedders_saved_query_prompt_is_its_instruction(tmp_path: Path) -> None:
    plain = GOLDEN / "text-embedding" / "tiny"
    folder = shutil.copytree(plain, tmp_path / "model")
    prompts = {"query": "Instruct: Find code.\nQuery:", "document": ""}
    change(folder / SETTINGS, prompts=prompts)
    np.testing.assert_allclose(
        Embedder(str(folder)).embed([QUERY], "query"),
        Embedder(str(plain)).embed([QUERY], "query", "Find code."),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("pooling", "is_read"),
    [
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, True),
        ({"pooling_mode": "lasttoken"}, True),
        ({"pooling_mode_mean_tokens": True}, False),
        ({"pooling_mode": "mean"}, False),
    ],
)
def test_only_the_last_token_is_pooled(
    tmp_path: Path, pooling: dict[str, Any], is_read: bool
) -> None:
    folder = shutil.copytree(GOLDEN / "text-embedding" / "tiny", tmp_path / "model")
    modules = [{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "b.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    change(folder / "1_Pooling" / "config.json", **pooling)
    if is_read:
        assert Embedder(str(folder)).embed([QUERY]).shape == (1, 64)
        return
    with pytest.raises(ValueError, match=r"only the last token's state is a vector here"):
        Embedder(str(folder))


@pytest.mark.parametrize(
    ("file", "values", "sentence"),
    [
        (SETTINGS, {"activation_fn": "torch.nn.Tanh"}, "activation 'torch.nn.Tanh': only a sig"),
        ("config.json", {"rope_scaling": "yarn"}, "rope_scaling that is no object: 'yarn'"),
        ("config.json", {"rope_parameters": {"rope_theta": "1e6"}}, "rope_theta that is no number"),
        ("1_LogitScore/config.json", {"true_token_id": "yes"}, "config.json names no tokens: "),
        ("1_LogitScore/config.json", {"true_token_id": 9_999}, "LogitScore of the tokens 9999"),
    ],
)
def test_what_would_score_otherwise_is_refused(
    saved: Path, file: str, values: dict[str, Any], sentence: str
) -> None:
    change(saved / file, **values)
    with pytest.raises(ValueError, match=sentence):
        Reranker(str(saved))


def test_an_older_settings_activation_is_looked_for_too(saved: Path) -> None:
    (saved / SETTINGS).unlink()
    change(saved / "config.json", sbert_ce_default_activation_function="torch.nn.Tanh")
    with pytest.raises(ValueError, match=r"activation 'torch\.nn\.Tanh': only a sigmoid"):
        Reranker(str(saved))


@pytest.mark.parametrize("name", ["modules.json", SETTINGS, "1_LogitScore/config.json"])
@pytest.mark.parametrize("content", ["{", "[3]", "3"])
def test_a_file_that_cannot_be_read_is_named(saved: Path, name: str, content: str) -> None:
    (saved / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(name)) as refusal:
        Reranker(str(saved))
    assert "\n" not in str(refusal.value)


# 8 bits

TENSORS = {"quant_method": "compressed-tensors"} | {
    "config_groups": {
        "group_0": {
            "weights": {"type": "float", "num_bits": 8, "strategy": "channel"},
            "input_activations": {"type": "float", "num_bits": 8, "dynamic": True},
        }
    }
}
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def in_fp8(model: Path, folder: Path, scheme: dict[str, Any], by: str) -> tuple[Path, Path]:
    """Two copies: its linear layers in 8 bits with scales, and the numbers that these mean."""
    stored, meant = (shutil.copytree(model, folder / name) for name in ("stored", "meant"))
    weights = load_file(stored / "model.safetensors")
    small, plain = dict(weights), dict(weights)
    for name, weight in weights.items():
        if "_proj.weight" not in name or "visual" in name:
            continue
        largest = weight.abs().amax(dim=1, keepdim=True) if by == "row" else weight.abs().amax()
        scale = largest / 448
        small[name] = (weight / scale).to(torch.float8_e4m3fn)
        plain[name] = small[name].float() * scale
        if by == "block":
            num = [-(-size // 128) for size in weight.shape]
            small[f"{name}_scale_inv"] = scale.expand(*num).contiguous()
        else:
            small[f"{name}_scale"] = scale
    save_file(small, stored / "model.safetensors", metadata={"format": "pt"})
    save_file(plain, meant / "model.safetensors", metadata={"format": "pt"})
    change(stored / "config.json", quantization_config=scheme)
    return stored, meant


@pytest.mark.parametrize("model", [TINY, TIED])
@pytest.mark.parametrize(
    ("scheme", "by"), [(TENSORS, "row"), (TENSORS, "tensor"), (BLOCKS, "block")]
)
def test_weights_in_8_bits_score_as_the_numbers_that_they_mean(
    tmp_path: Path, model: Path, scheme: dict[str, Any], by: str
) -> None:
    stored, meant = in_fp8(model, tmp_path, scheme, by)
    expected = Reranker(str(meant)).score(QUERY, DOCUMENTS)
    assert Reranker(str(stored)).score(QUERY, DOCUMENTS) == pytest.approx(expected, abs=1e-6)
    assert expected != pytest.approx(Reranker(str(model)).score(QUERY, DOCUMENTS), abs=1e-6)


def test_blocks_of_a_larger_matrix_have_their_own_scale() -> None:
    from shardrank.actors.model.linear import dequantize

    values = torch.randn(200, 300).to(torch.float8_e4m3fn)
    scale = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    weights = {"x.weight": values, "x.weight_scale_inv": scale}
    dequantize(weights, None)
    expected = values.float()
    for row in range(200):
        for column in range(300):
            expected[row, column] *= scale[row // 128, column // 128]
    assert list(weights) == ["x.weight"]
    assert torch.equal(weights["x.weight"], expected)


def test_the_8_bits_are_found_again_where_they_are_multiplied(tmp_path: Path) -> None:
    stored, meant = in_fp8(TIED, tmp_path, TENSORS, "row")
    settings = {"quantization": "fp8", "device": "cpu", "dtype": "float32"}
    again = Reranker(str(stored), **settings).score(QUERY, DOCUMENTS)
    assert again == pytest.approx(Reranker(str(meant), **settings).score(QUERY, DOCUMENTS))


def group(**weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": weights}}}


@pytest.mark.parametrize(
    ("scheme", "sentence"),
    [
        (BLOCKS | {"activation_scheme": "static"}, "(fp8, activation_scheme 'static')"),
        (BLOCKS | {"weight_block_size": [64, 64]}, "(fp8, weight_block_size [64, 64])"),
        (group(type="int", num_bits=4), "(compressed-tensors, 4 bits of int)"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "g": {
                        "weights": {"type": "float", "num_bits": 8},
                        "input_activations": {"dynamic": False},
                    }
                },
            },
            "(compressed-tensors, static activations)",
        ),
        ({"quant_method": "compressed-tensors"}, "a quantization_config without config_groups"),
        ({"quant_method": "gptq"}, "a quantization_config (gptq)"),
    ],
)
def test_another_quantisation_is_refused_by_name(
    tmp_path: Path, scheme: dict[str, Any], sentence: str
) -> None:
    stored, _ = in_fp8(TIED, tmp_path, scheme, "row")
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Reranker(str(stored))


def test_8_bits_without_their_scale_are_refused(tmp_path: Path) -> None:
    stored, _ = in_fp8(TIED, tmp_path, TENSORS, "row")
    weights = load_file(stored / "model.safetensors")
    name = next(name for name in weights if name.endswith("_scale"))
    save_file(
        {key: each for key, each in weights.items() if key != name}, stored / "model.safetensors"
    )
    with pytest.raises(ValueError, match="is in F8_E4M3 and has no scale"):
        Reranker(str(stored))
    weights[name] = torch.ones(3, 5)
    save_file(weights, stored / "model.safetensors")
    with pytest.raises(ValueError, match=r"has a scale of \[3, 5\]"):
        Reranker(str(stored))


def test_an_embedder_may_be_in_8_bits(tmp_path: Path) -> None:
    stored, meant = in_fp8(TINY, tmp_path, TENSORS, "row")
    config = RerankerConfig(str(stored), embedding=EmbeddingOptions())
    np.testing.assert_allclose(
        Embedder(config).embed(DOCUMENTS), Embedder(str(meant)).embed(DOCUMENTS), atol=1e-6
    )
