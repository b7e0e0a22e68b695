"""The benchmark's checkpoints and workloads: deterministic, of the stated sizes, and alive."""

import json
from pathlib import Path

import pytest
from PIL import Image

from bench.checkpoints import build
from bench.media import page_size, write_frames, write_page
from bench.peers.ours import Ours
from bench.peers.protocol import PeerSettings
from bench.peers.transformers_one import TransformersOne
from bench.pool import PeerPool
from bench.presets import NAMES, PRESETS
from bench.processes import PeerFailed
from bench.settings import BenchSettings
from bench.tokenizer import SPECIAL_TOKENS, train_tokenizer
from bench.words import WordSource
from bench.workloads import BUILDERS, Drawing, build_workload
from shardrank.actors import CandidateSet, Reranker
from shardrank.actors.config import OFFICIAL_DEFAULTS

TOKENIZER = train_tokenizer()


def count(text: str) -> int:
    return len(TOKENIZER.encode(text, add_special_tokens=False).ids)


def drawing(path: Path, seed: int = 0, scale: float = 0.1) -> Drawing:
    return Drawing(seed, scale, 48, path / "media", count)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return build("tiny", tmp_path_factory.mktemp("checkpoint"))


def test_the_tokenizer_is_the_same_every_time_and_knows_what_the_prompt_needs():
    assert train_tokenizer().to_str() == TOKENIZER.to_str()
    for text in ("yes", "no", *SPECIAL_TOKENS):
        assert TOKENIZER.encode(text).ids == [TOKENIZER.token_to_id(text)]


@pytest.mark.parametrize("num_tokens", [1, 3, 10, 600])
def test_texts_have_exactly_the_tokens_asked_for(num_tokens):
    words = WordSource("test", count)
    assert [count(words.text(num_tokens)) for _ in range(20)] == [num_tokens] * 20


@pytest.mark.parametrize("name", BUILDERS)
def test_a_workload_depends_on_its_seed_alone(name, tmp_path):
    first, again, other = (build_workload(name, drawing(tmp_path, seed)) for seed in (0, 0, 1))
    assert first == again and first.sets != other.sets
    assert json.loads(first.save(tmp_path).read_text())["sets"] == first.sets


def test_the_text_workload_has_the_stated_size(tmp_path):
    text = build_workload("text", drawing(tmp_path, scale=1))
    assert (len(text.sets), text.num_pairs) == (20, 1_000)
    lengths = {count(each["text"]) for one in text.sets for each in one["documents"]}
    assert min(lengths) == 80 and max(lengths) == 120


def test_a_page_serves_about_13_queries(tmp_path):
    pages = build_workload("pages", Drawing(0, 1, 8, tmp_path, count))
    shown = {each["image"] for one in pages.sets for each in one["documents"]}
    assert (len(pages.sets), len(shown), pages.num_pairs // len(shown)) == (40, 60, 13)


def test_mixed_lengths_span_10_to_4000_tokens(tmp_path):
    mixed = build_workload("mixed", drawing(tmp_path, scale=1))
    lengths = [count(each["text"]) for one in mixed.sets for each in one["documents"]]
    assert 10 <= min(lengths) < 15 and 3_000 < max(lengths) <= 4_000
    assert sum(length < 200 for length in lengths) == pytest.approx(len(lengths) / 2, rel=0.2)


@pytest.mark.parametrize("num_tokens", [48, 300, 1_300])
def test_pages_have_about_the_visual_tokens_asked_for(num_tokens, tmp_path):
    width, height = page_size(num_tokens)
    assert width * height / 32**2 == pytest.approx(num_tokens, rel=0.05)
    with Image.open(write_page(tmp_path / "a.png", "seed", num_tokens)) as page:
        assert round(page.width / 32) * 32 == width and round(page.height / 32) * 32 == height


def test_video_frames_need_no_enlarging(tmp_path):
    frames = write_frames(tmp_path, "seed", 3)
    with Image.open(frames[0]) as first, Image.open(frames[2]) as last:
        assert first.width * first.height >= OFFICIAL_DEFAULTS["video_min_pixels"]
        assert first.tobytes() != last.tobytes()


def test_a_part_is_spread_evenly_and_remembers_its_places(tmp_path):
    whole = build_workload("text", drawing(tmp_path))
    part = whole.part(4)
    assert part.num_pairs == 4 and whole.part(1_000) == whole
    flat = [each for one in whole.sets for each in one["documents"]]
    places = [place for row in part.places for place in row]
    assert [each for one in part.sets for each in one["documents"]] == [flat[p] for p in places]
    assert max(places) >= whole.num_pairs // 2


def test_a_checkpoint_is_built_once_and_the_same_for_the_same_seed(checkpoint, tmp_path):
    weights = (checkpoint / "model.safetensors").read_bytes()
    before = (checkpoint / "config.json").stat().st_mtime_ns
    build("tiny", checkpoint)
    assert (checkpoint / "config.json").stat().st_mtime_ns == before
    assert (build("tiny", tmp_path) / "model.safetensors").read_bytes() == weights


def test_a_checkpoint_in_shards_is_the_same_checkpoint(checkpoint, tmp_path):
    build("tiny", tmp_path, max_shard_bytes=300_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    whole, sharded = (
        Reranker(str(path), device="cpu", dtype="float32").score("a query", ["a document"])
        for path in (checkpoint, tmp_path)
    )
    assert whole == pytest.approx(sharded, abs=1e-6)


def test_scores_of_a_random_checkpoint_spread(checkpoint):
    words = WordSource("test", count)
    sets = [
        CandidateSet.parse(words.text(12), [words.text(100) for _ in range(10)]) for _ in range(4)
    ]
    reranker = Reranker(str(checkpoint), device="cpu", dtype="float32")
    scores = [pair.score for one in reranker.score_sets(sets) for pair in one]
    assert min(scores) < 0.3 and max(scores) > 0.7
    assert len({round(score, 2) for score in scores}) > 20


def test_presets_are_consistent_with_themselves():
    for name in NAMES:
        preset = PRESETS[name]
        assert preset.text["hidden_size"] == preset.vision["out_hidden_size"]
        assert 2 * sum(preset.text["rope_scaling"]["mrope_section"]) == preset.text["head_dim"]
        assert max(preset.vision["deepstack_visual_indexes"]) < preset.vision["depth"]
        assert preset.vision["hidden_size"] % (4 * preset.vision["num_heads"]) == 0


def test_a_checkpoint_without_weights_is_the_same_model_for_everybody(tmp_path):
    directory = build("tiny", tmp_path, has_weights=False)
    assert sum(file.stat().st_size for file in directory.iterdir() if file.is_file()) < 300_000
    documents = [{"text": "one"}, {"text": "a longer one than that"}, {"text": "three " * 9}]
    sets = [{"query": {"text": "which?"}, "instruction": None, "documents": documents}]
    settings = PeerSettings(str(directory))
    (expected,) = TransformersOne(settings).score(sets)
    assert Ours(settings).score(sets)[0] == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 3) for score in expected}) == 3


def test_what_reads_files_is_not_started_on_weights_that_are_none(tmp_path):
    pool = PeerPool(BenchSettings(tmp_path, preset="2b"), "checkpoint")
    with pytest.raises(PeerFailed, match="reads weights from files: give --model, not 2b"):
        pool.get("sentence_transformers")
