"""The benchmark's checkpoints and workloads: deterministic, of the stated sizes, and alive."""

from pathlib import Path

import pytest
from PIL import Image
from tokenizers import Tokenizer

from bench.checkpoints.build import build
from bench.checkpoints.presets import PRESETS
from bench.media import page_size, write_frames, write_page
from bench.peers.ours import Ours
from bench.peers.plain import TransformersOne
from bench.peers.protocol import PeerSettings
from bench.workloads import KINDS, Drawing, build_workload
from shardrank.actors.config import OFFICIAL_DEFAULTS
from tests.support.engine import TINY

DEMO = Path(__file__).parents[2] / "demo" / "model"
TOKENIZERS = {path: Tokenizer.from_file(str(path / "tokenizer.json")) for path in (DEMO, TINY)}


def count(text: str, checkpoint: Path = DEMO) -> int:
    return len(TOKENIZERS[checkpoint].encode(text, add_special_tokens=False))


def drawing(path: Path, seed: int = 0, scale: float = 0.1, page_tokens: int = 48) -> Drawing:
    return Drawing.of(DEMO, path / "media", seed=seed, scale=scale, page_tokens=page_tokens)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return build("tiny", tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize("checkpoint", TOKENIZERS)
@pytest.mark.parametrize("num_tokens", [1, 3, 10, 600])
def test_texts_have_exactly_the_tokens_asked_for(num_tokens, checkpoint):
    words = Drawing.of(checkpoint)
    lengths = [count(words.text(num_tokens)["text"], checkpoint) for _ in range(20)]
    assert lengths == [num_tokens] * 20


@pytest.mark.parametrize("name", KINDS)
def test_a_workload_depends_on_its_seed_alone(name, tmp_path):
    first, again, other = (build_workload(name, drawing(tmp_path, seed)) for seed in (0, 0, 1))
    assert first == again and first.sets != other.sets


def test_the_text_workload_has_the_stated_size(tmp_path):
    text = build_workload("text", drawing(tmp_path, scale=1))
    assert (len(text.sets), text.num_pairs) == (20, 1_000)
    lengths = {count(each["text"]) for one in text.sets for each in one["documents"]}
    assert min(lengths) == 80 and max(lengths) == 120


def test_a_page_serves_about_13_queries(tmp_path):
    pages = build_workload("pages", drawing(tmp_path, scale=1, page_tokens=8))
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
    weights = checkpoint / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert build("tiny", checkpoint) == checkpoint and weights.stat().st_mtime_ns == before
    assert (build("tiny", tmp_path) / weights.name).read_bytes() == weights.read_bytes()


def test_scores_of_a_random_checkpoint_spread(checkpoint, tmp_path):
    sets = build_workload("text", drawing(tmp_path, seed=1, scale=0.2)).sets
    scores = [score for row in Ours(PeerSettings(str(checkpoint))).score(sets) for score in row]
    assert min(scores) < 0.3 and max(scores) > 0.7
    assert len({round(score, 2) for score in scores}) > 20


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets_are_consistent_with_themselves(preset):
    text, vision = preset.text, preset.vision
    assert text["hidden_size"] == vision["out_hidden_size"]
    assert 2 * sum(text["rope_scaling"]["mrope_section"]) == text["head_dim"]
    assert max(vision["deepstack_visual_indexes"]) < vision["depth"]
    assert vision["hidden_size"] % (4 * vision["num_heads"]) == 0


def test_a_checkpoint_without_weights_is_the_same_model_for_everybody(tmp_path):
    directory = build("tiny", tmp_path, has_weights=False)
    assert not list(directory.glob("*.safetensors"))
    documents = [{"text": "one"}, {"text": "a longer one than that"}, {"text": "three " * 9}]
    sets = [{"query": {"text": "which?"}, "documents": documents}]
    settings = PeerSettings(str(directory))
    (expected,) = TransformersOne(settings).score(sets)
    assert Ours(settings).score(sets)[0] == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 3) for score in expected}) == 3
