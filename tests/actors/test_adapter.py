import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shardrank.actors import Reranker, RerankerConfig
from shardrank.actors.model.checkpoint import (
    adapter_of,
    checkpoint_fingerprint,
    resolve_checkpoint,
)
from tests.actors.test_families import Case, cases, reranker, scored
from tests.support.engine import GOLDEN, TINY

LORA = GOLDEN / "lora"
TIED = GOLDEN / "text-reranker" / "tiny-tied"
CASES = cases("lora/cases-vl.jsonl") + cases("lora/cases-text.jsonl")


def base_of(case: Case) -> Path:
    return TINY if case["adapter"].startswith("vl") else TIED.parent / case["base"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['adapter']}-{case['id']}")
def test_a_score_with_an_adapter_is_the_official_one(case: Case) -> None:
    found = scored(reranker(base_of(case), LORA / case["adapter"]), case)
    assert found.score == pytest.approx(case["official"]["score"], abs=1e-4)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A copy of an adapter that a test may change."""
    return shutil.copytree(LORA / "tr-lora", tmp_path / "adapter")


def configure(adapter: Path, **values: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_an_adapters_folder_may_stand_for_the_model_that_it_names(adapter: Path) -> None:
    configure(adapter, base_model_name_or_path=str(TIED))
    config = RerankerConfig(str(adapter))
    assert (resolve_checkpoint(config), adapter_of(config)) == (TIED, adapter)
    case = next(each for each in CASES if each["adapter"] == "tr-lora")
    found = scored(Reranker(config), case)
    assert found.score == pytest.approx(case["official"]["score"], abs=1e-4)


def test_a_base_that_is_not_here_is_named_with_the_way_on(adapter: Path) -> None:
    configure(adapter, base_model_name_or_path="/gone/model")
    with pytest.raises(ValueError, match="an adapter of '/gone/model': .*give its base as the mod"):
        resolve_checkpoint(RerankerConfig(str(adapter)))
    configure(adapter, base_model_name_or_path=None)
    with pytest.raises(ValueError, match=r"adapter_config\.json names no base"):
        resolve_checkpoint(RerankerConfig(str(adapter)))


def test_a_fingerprint_has_the_adapter(adapter: Path) -> None:
    alone, adapted = checkpoint_fingerprint(TIED), checkpoint_fingerprint(TIED, adapter)
    assert {name: adapted[name] for name in alone} == alone
    configure(adapter, lora_alpha=17)
    assert checkpoint_fingerprint(TIED, adapter)["adapter"] != adapted["adapter"]


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def changed(adapter: Path) -> None:
        file = adapter / "adapter_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return changed


LAYER = "base_model.model.model.layers.0.self_attn"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda adapter: configure(adapter, peft_type="IA3"), "peft_type 'IA3': such adapters are"),
        (lambda adapter: configure(adapter, bias="all"), "bias 'all': such adapters are not read"),
        (lambda adapter: configure(adapter, r=0), "adapter_config.json cannot be read: "),
        (
            lambda adapter: configure(adapter, init_lora_weights="pissa_niter_4"),
            "has init_lora_weights 'pissa_niter_4': such adapters are not read",
        ),
        (
            weights(
                lambda tensors: tensors.update(
                    {
                        "base_model.model.lm_head.lora_A.weight": torch.ones(8, 64),
                        "base_model.model.lm_head.lora_B.weight": torch.ones(4032, 8),
                    }
                )
            ),
            "changes embeddings that are the head too",
        ),
        (
            lambda adapter: (adapter / "adapter_config.json").write_text("{"),
            "adapter_config.json cannot be read: ",
        ),
        (
            lambda adapter: (adapter / "adapter_model.safetensors").write_bytes(b"x"),
            "cannot be loaded: ",
        ),
        (
            lambda adapter: (adapter / "adapter_model.safetensors").unlink(),
            "has no adapter_model.safetensors: not an adapter that PEFT saved",
        ),
        (
            weights(
                lambda tensors: tensors.update({f"{LAYER}.x.lora_A.weight": torch.ones(8, 64)})
            ),
            "adapts language_model.layers.0.self_attn.x.weight, which the model does not have",
        ),
        (
            weights(lambda tensors: tensors.pop(f"{LAYER}.q_proj.lora_B.weight")),
            "does not fit language_model.layers.0.self_attn.q_proj.weight: 'lora_B'",
        ),
        (
            weights(
                lambda tensors: tensors.update({f"{LAYER}.q_proj.lora_A.weight": torch.ones(8, 9)})
            ),
            "does not fit language_model.layers.0.self_attn.q_proj.weight: ",
        ),
        (
            weights(
                lambda tensors: tensors.update(
                    {"base_model.model.lm_head.weight": torch.ones(3, 4)}
                )
            ),
            "has lm_head.weight of shape [3, 4], where the model asks for [4032, 64]",
        ),
        (
            weights(
                lambda tensors: tensors.update(
                    {"base_model.model.model.embed_tokens.weight": torch.ones(4032, 64)}
                )
            ),
            "changes embeddings that are the head too",
        ),
        (
            weights(lambda tensors: tensors.update({f"{LAYER}.gate.weight": torch.ones(4)})),
            "has language_model.layers.0.self_attn.gate.weight, which the model does not have",
        ),
    ],
)
def test_an_adapter_that_is_not_merged_is_refused_by_name(
    adapter: Path, change: Callable[[Path], None], sentence: str
) -> None:
    change(adapter)
    with pytest.raises(ValueError, match=re.escape(sentence)) as refusal:
        Reranker(str(TIED), adapter=str(adapter))
    assert "\n" not in str(refusal.value)
    assert str(adapter) in str(refusal.value)


def test_a_classifiers_row_may_be_the_adapters(adapter: Path) -> None:
    """As PEFT saves it for SEQ_CLS; the row here is the head's own, so that the score is too."""
    head = load_file(TIED / "model.safetensors")["model.embed_tokens.weight"]
    row = (head[4000] - head[2152])[None]
    weights(lambda tensors: tensors.update({"base_model.model.score.weight": row}))(adapter)
    case = next(each for each in CASES if each["adapter"] == "tr-lora")
    found = scored(Reranker(str(TIED), adapter=str(adapter)), case)
    assert found.score == pytest.approx(case["official"]["score"], abs=1e-4)


@pytest.mark.parametrize("prefix", ["", "model.", "^model."])
def test_a_pattern_may_be_a_whole_modules_name(tmp_path: Path, prefix: str) -> None:
    """As PEFT matches it: the golden adapter's patterns, written in full."""
    folder = shutil.copytree(LORA / "tr-rslora-patterns", tmp_path / "adapter")
    configure(
        folder,
        rank_pattern={f"{prefix}layers.0.self_attn.q_proj": 2},
        alpha_pattern={f"{prefix}layers.1.mlp.down_proj": 32},
    )
    case = next(each for each in CASES if each["adapter"] == "tr-rslora-patterns")
    found = scored(Reranker(str(TIED), adapter=str(folder)), case)
    assert found.score == pytest.approx(case["official"]["score"], abs=1e-4)
