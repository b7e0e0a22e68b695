import json
from pathlib import Path

import pytest

from shardrank.actors.config import RerankerConfig
from shardrank.actors.model.checkpoint import checkpoint_fingerprint, resolve_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Files with a checkpoint's names; only config.json means anything."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model-1.safetensors").write_bytes(b"weights")
    return folder


def test_a_checkpoint_directory_is_itself(checkpoint: Path) -> None:
    assert resolve_checkpoint(RerankerConfig(str(checkpoint))) == checkpoint


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(
        ValueError, match=f"has no {name}: not a checkpoint of a model to rerank with$"
    ):
        resolve_checkpoint(RerankerConfig(str(checkpoint)))


def test_another_models_checkpoint_is_refused(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(ValueError, match="holds a 'qwen2' model, not qwen3 or qwen3_vl: one of Qw"):
        resolve_checkpoint(RerankerConfig(str(checkpoint)))


@pytest.mark.parametrize("text", [b"{", b"[]", b"{}", b"3", b"\xff"])
def test_a_config_that_cannot_be_read_is_named(checkpoint: Path, text: bytes) -> None:
    (checkpoint / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"config\.json cannot be read: "):
        resolve_checkpoint(RerankerConfig(str(checkpoint)))


@pytest.mark.parametrize(
    "model",
    ["gone", "/gone/model", "./gone", "../gone/x", "a/b/c", "~/gone/x", "~nobody.x/y/z"],
)
def test_a_path_that_is_not_there_is_not_looked_for_in_the_hub(model: str) -> None:
    with pytest.raises(ValueError, match="is neither a directory nor a hub name \\(owner/name\\)$"):
        resolve_checkpoint(RerankerConfig(model))


def test_a_hub_name_without_a_hub_gives_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match="^model 'nobody/nothing-here' is not a dir.* hub: "
    ) as raised:
        resolve_checkpoint(RerankerConfig("nobody/nothing-here"))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_a_fingerprint_does_not_depend_on_the_place(checkpoint: Path, tmp_path: Path) -> None:
    before = checkpoint_fingerprint(checkpoint)
    checkpoint.rename(tmp_path / "elsewhere")
    assert checkpoint_fingerprint(tmp_path / "elsewhere") == before


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("model-1.safetensors", "weights"),
        ("model-2.safetensors", "weights"),
        ("config.json", "settings"),
        ("tokenizer.json", "settings"),
        ("reranker.json", "settings"),
    ],
)
def test_a_fingerprint_follows_what_decides_a_score(
    checkpoint: Path, name: str, changed: str
) -> None:
    before = checkpoint_fingerprint(checkpoint)
    (checkpoint / name).write_bytes(b"other")
    after = checkpoint_fingerprint(checkpoint)
    assert {key for key in before if before[key] != after[key]} == {changed}


def test_a_fingerprint_ignores_what_does_not(checkpoint: Path) -> None:
    before = checkpoint_fingerprint(checkpoint)
    (checkpoint / "README.md").write_text("words")
    assert checkpoint_fingerprint(checkpoint) == before


def test_out_of_the_hubs_cache_the_commit_stands_for_the_weights(
    checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "snapshots").mkdir()
    cached = checkpoint.rename(tmp_path / "snapshots" / "0123abcd")
    with_weights = checkpoint_fingerprint(cached)
    (cached / "model-1.safetensors").unlink()
    assert checkpoint_fingerprint(cached) == with_weights
    assert with_weights["commit"] == "0123abcd"
