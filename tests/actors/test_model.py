import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from shardrank.actors import Reranker
from shardrank.actors.model.model import load_model
from tests.support.engine import TINY, candidate_set, golden_cases

CPU = torch.device("cpu")


@pytest.fixture
def copy(tmp_path):
    """A copy of the tiny checkpoint that a test may change."""
    return shutil.copytree(TINY, tmp_path / "checkpoint")


def change_config(checkpoint, **changes):
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(checkpoint, change):
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def another_head(weights):
    embedding = weights["model.language_model.embed_tokens.weight"]
    weights["lm_head.weight"] = embedding.flip(0).contiguous()


def first_score(checkpoint):
    return Reranker(str(checkpoint)).score("a query", ["a document"])[0]


def test_weights_load_in_float32_although_stored_in_bfloat16():
    model = load_model(TINY, CPU, torch.float32)
    assert model.head.dtype == torch.float32
    assert model.dtype == torch.float32


def test_the_config_form_of_transformers_5_gives_the_same_scores(copy):
    before = first_score(copy)
    AutoConfig.from_pretrained(copy).save_pretrained(copy)
    written = json.loads((copy / "config.json").read_text())["text_config"]
    assert "rope_parameters" in written and "rope_scaling" not in written
    assert first_score(copy) == before


def test_an_untied_head_is_used(copy):
    before = first_score(copy)
    change_weights(copy, another_head)
    text = json.loads((copy / "config.json").read_text())["text_config"]
    change_config(
        copy, tie_word_embeddings=False, text_config=text | {"tie_word_embeddings": False}
    )
    head = load_model(copy, CPU, torch.float32).head
    flipped = load_file(TINY / "model.safetensors")["model.language_model.embed_tokens.weight"]
    rows = flipped.flip(0).float()
    assert torch.equal(head, rows[9693] - rows[2152])
    assert first_score(copy) != before


@pytest.mark.parametrize(
    ("inner", "outer", "is_tied"),
    [(True, True, True), (True, False, True), (False, True, False), (False, False, False)],
)
def test_a_head_beside_tied_embeddings_is_used_as_by_the_official_class(
    copy, inner, outer, is_tied
):
    """Measured with the official class under transformers 4.57.6, which gave the golden scores."""
    change_weights(copy, another_head)
    text = json.loads((copy / "config.json").read_text())["text_config"]
    change_config(
        copy, tie_word_embeddings=outer, text_config=text | {"tie_word_embeddings": inner}
    )
    tied = load_model(TINY, CPU, torch.float32).head
    assert torch.equal(load_model(copy, CPU, torch.float32).head, tied) == is_tied


def test_tied_embeddings_need_no_head_whichever_setting_ties_them(copy):
    text = json.loads((copy / "config.json").read_text())["text_config"]
    tied = load_model(TINY, CPU, torch.float32).head
    for inner, outer in ((True, False), (False, True)):
        change_config(
            copy, tie_word_embeddings=outer, text_config=text | {"tie_word_embeddings": inner}
        )
        assert torch.equal(load_model(copy, CPU, torch.float32).head, tied)


def test_missing_weights_are_refused_by_name(copy):
    name = "model.language_model.layers.2.mlp.up_proj.weight"
    change_weights(copy, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=r"lacks weights .*layers\.2\.mlp\.up_proj"):
        load_model(copy, CPU, torch.float32)


def test_weights_of_another_shape_are_refused(copy):
    def shrink(weights):
        weights["model.language_model.norm.weight"] = torch.ones(3)

    change_weights(copy, shrink)
    with pytest.raises(ValueError, match="checkpoint"):
        load_model(copy, CPU, torch.float32)


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 64])
def test_broken_weight_files_are_refused_in_one_sentence(copy, content):
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be loaded") as refusal:
        load_model(copy, CPU, torch.float32)
    assert "\n" not in str(refusal.value)


def test_pickled_weights_are_never_read(copy):
    weights = load_file(copy / "model.safetensors")
    torch.save(weights, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no \*\.safetensors"):
        load_model(copy, CPU, torch.float32)


def test_bfloat16_stays_near_float32():
    cases = [case for case in golden_cases() if case["kind"] in {"text", "image"}]
    reranker = Reranker(
        str(TINY), dtype="bfloat16", special_tokens="official", media_root=str(TINY.parent)
    )
    scores = [pairs[0].score for pairs in reranker.score_sets([candidate_set(c) for c in cases])]
    worst = max(
        abs(score - case["official"]["score"]) for score, case in zip(scores, cases, strict=True)
    )
    assert worst < 0.1
