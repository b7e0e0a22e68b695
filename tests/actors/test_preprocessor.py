import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from shardrank.actors.config import QueryOptions, RerankerConfig
from shardrank.actors.data import CandidateSet, Content, Video
from shardrank.actors.errors import (
    AspectRatio,
    EmptyDocument,
    EmptyQuery,
    ImageDecodeError,
    InvalidContent,
    MediaForbidden,
    RerankError,
    SpecialTokenInText,
    TextTooLarge,
    TooManyVisualTokens,
    VideoDecodeError,
)
from shardrank.actors.families.qwen3_vl_reranker import QWEN3_VL_RERANKER
from shardrank.actors.prepared import PreparedPair, PreparedSet, Visual
from shardrank.actors.preprocessor import Preprocessor

torch.set_num_threads(1)

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENIZER = Tokenizer.from_file(str(GOLDEN / "tiny" / "tokenizer.json"))


def preprocessor(**settings: Any) -> Preprocessor:
    return Preprocessor(RerankerConfig(str(GOLDEN / "tiny"), media_root=str(GOLDEN), **settings))


PLAIN = preprocessor()


def prepare(query: Any, *documents: Any, **more: Any) -> PreparedSet:
    return PLAIN.prepare(CandidateSet.parse(query, documents, **more))


def pair_of(prepared: PreparedSet, index: int = 0) -> PreparedPair:
    pair = prepared.pairs[index]
    assert isinstance(pair, PreparedPair), pair
    return pair


def png(*size: int, seed: int = 0) -> bytes:
    """A noisy image of width x height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def same(left: PreparedPair, right: PreparedPair) -> bool:
    return np.array_equal(left.input_ids, right.input_ids) and np.array_equal(
        left.position_ids, right.position_ids
    )


BAD = {
    "broken": ({"image": b"broken"}, ImageDecodeError),
    "second image": ({"image": [png(64, 64, seed=5), b"broken"]}, ImageDecodeError),
    "outside": ({"image": "../conftest.py"}, MediaForbidden),
    "video": ({"video": b"broken"}, VideoDecodeError),
    "frames": ({"video": {"frames": [png(64, 64, seed=6), b"broken"]}}, ImageDecodeError),
    "opened": ({"image": Image.open(io.BytesIO(png(90, 90)[:2_000]))}, ImageDecodeError),
    "type": (3, InvalidContent),
    "surrogate": ("a \ud800", InvalidContent),
    "long": ("x" * 1_000_001, TextTooLarge),
    "url": ({"image": "file://[x"}, RerankError),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_document_leaves_the_others_as_they_were(name: str) -> None:
    bad, kind = BAD[name]
    good = ["a text", {"image": png(64, 64, seed=1), "text": "b"}, {"image": png(64, 96, seed=2)}]
    with_bad = prepare("q", good[0], good[1], bad, good[2])
    without = prepare("q", *good)
    assert isinstance(with_bad.pairs[2], kind)
    for index, place in enumerate((0, 1, 3)):
        assert same(pair_of(with_bad, place), pair_of(without, index))
        assert np.array_equal(
            pair_of(with_bad, place).visual_index, pair_of(without, index).visual_index
        )
    assert [each.key for each in with_bad.visuals] == [each.key for each in without.visuals]


def test_an_image_that_a_bad_document_shared_stays_with_the_others() -> None:
    image = png(64, 64)
    prepared = prepare("q", {"image": image}, {"image": [image, b"broken"]}, {"image": image})
    assert len(prepared.visuals) == 1
    assert pair_of(prepared, 2).visual_index.max() == 0


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        (None, EmptyQuery),
        ({}, EmptyQuery),
        ("", EmptyQuery),
        ({"text": None}, EmptyQuery),
        ({"image": []}, EmptyQuery),
        ({"text": [" ", "\n"]}, EmptyQuery),
        (3, InvalidContent),
        ({"image": b"broken"}, ImageDecodeError),
        ("\udfff", InvalidContent),
    ],
)
def test_a_bad_query_is_every_documents_error(query: Any, kind: type[RerankError]) -> None:
    prepared = prepare(query, "a", {"image": png(64, 64)})
    assert [type(pair) for pair in prepared.pairs] == [kind, kind]
    assert prepared.visuals == ()


EMPTY_DOCUMENTS = [None, {}, {"text": None}, {"image": []}, "", " \n\t", {"text": "", "image": ""}]


@pytest.mark.parametrize("document", EMPTY_DOCUMENTS)
def test_a_document_that_says_nothing_is_its_own_error(document: Any) -> None:
    pairs = prepare("q", "a", document, "b").pairs
    assert [type(pair) for pair in pairs] == [PreparedPair, EmptyDocument, PreparedPair]
    assert str(pairs[1]).startswith("documents[1] says nothing: it has ")


@pytest.mark.parametrize(
    ("document", "written"),
    [(None, "NULL"), ({}, "NULL"), ({"text": None}, "NULL"), ({"image": []}, "NULL"), ("", "")],
)
def test_what_says_nothing_is_read_as_officially_where_that_is_wanted(
    document: Any, written: str
) -> None:
    official = preprocessor(empty="official")
    pair = official.prepare(CandidateSet.parse("q", [document])).pairs[0]
    assert isinstance(pair, PreparedPair)
    said = TOKENIZER.decode(pair.input_ids.tolist())
    assert said.endswith(f"<Query>:q\n<Document>:{written}\nassistant\n")


def test_an_empty_part_beside_a_real_one_is_left_out() -> None:
    left, right = prepare("q", {"text": "x", "image": "", "video": None}, "x").pairs
    assert isinstance(left, PreparedPair) and isinstance(right, PreparedPair)
    assert left.input_ids.tolist() == right.input_ids.tolist()


def test_a_set_without_documents_is_empty() -> None:
    assert prepare("q") == PreparedSet((), ())


def test_a_sentence_names_the_document() -> None:
    pairs = prepare("q", "a", "b\ud800", "x" * 1_000_001).pairs
    assert str(pairs[1]) == (
        "documents[1] has a text that is not Unicode: a lone surrogate at character 1"
    )
    assert str(pairs[2]) == (
        "documents[2] has a text of 1000001 characters, over the limit of 1000000"
    )


def test_a_text_at_the_limit_is_prepared() -> None:
    small = preprocessor(max_text_chars=5)
    pairs = small.prepare(CandidateSet.parse("12345", ["12345", "123456"], "why")).pairs
    assert [type(pair) for pair in pairs] == [PreparedPair, TextTooLarge]


def test_a_bad_instruction_is_every_documents_error() -> None:
    pairs = prepare("q", "a", "b", instruction="\ud800").pairs
    assert [str(pair).partition(" has")[0] for pair in pairs] == ["instruction", "instruction"]


@pytest.mark.parametrize("instruction", [None, ""])
def test_no_instruction_means_the_default_one(instruction: str | None) -> None:
    usual = prepare("q", "a", instruction=QWEN3_VL_RERANKER.instruction)
    assert same(pair_of(prepare("q", "a", instruction=instruction)), pair_of(usual))


def test_a_configured_instruction_gives_way_to_the_querys_own() -> None:
    other = preprocessor(instruction="Other.")
    own = other.prepare(CandidateSet.parse("q", ["a"], "Own."))
    configured = other.prepare(CandidateSet.parse("q", ["a"]))
    assert same(pair_of(own), pair_of(prepare("q", "a", instruction="Own.")))
    assert same(pair_of(configured), pair_of(prepare("q", "a", instruction="Other.")))


def test_visuals_are_kept_once_by_content() -> None:
    image, other = png(64, 64), png(64, 64, seed=1)
    decoded = Image.open(io.BytesIO(image))
    prepared = prepare(
        {"image": image}, {"image": [other, image]}, {"image": decoded}, {"image": other}
    )
    assert len(prepared.visuals) == 2
    orders = [
        list(dict.fromkeys(pair_of(prepared, index).visual_index.tolist())) for index in range(3)
    ]
    assert orders == [[-1, 0, 1], [-1, 0], [-1, 0, 1]]
    assert pair_of(prepared, 1).num_visual_tokens == 8


def test_equal_bytes_of_another_shape_are_another_visual() -> None:
    pixels = np.zeros((1, 32, 64, 3), dtype=np.uint8)
    tall, pair = pixels.reshape(1, 64, 32, 3), pixels.reshape(2, 32, 32, 3)
    assert len({Visual.of(each).key for each in (pixels, tall, pair)}) == 3


def test_a_still_video_is_one_visual_with_several_times() -> None:
    frame = png(384, 384)
    pair = pair_of(prepared := prepare("q", {"video": {"frames": [frame] * 4}}))
    assert len(prepared.visuals) == 1
    assert pair.num_visual_tokens == 2 * 144


def timestamps(prepared: PreparedSet) -> str:
    ids = pair_of(prepared).input_ids.tolist()
    return str(PLAIN._encoder._tokenizer.decode(ids, skip_special_tokens=True))


@pytest.mark.parametrize(
    ("count", "fps", "times"),
    [
        (1, None, ["0.2"]),
        (2, None, ["0.2"]),
        (3, None, ["0.2", "1.2"]),
        (4, 1.0, ["0.5", "2.5"]),
    ],
)
def test_frames_are_half_a_second_apart_unless_told(
    count: int, fps: float | None, times: list[str]
) -> None:
    frames = tuple(Image.new("RGB", (384, 384), (index, 0, 0)) for index in range(count))
    text = timestamps(prepare("q", {"video": Video(frames=frames, fps=fps)}))
    assert text.count("seconds>") == len(times)
    assert all(f"<{time} seconds>" in text for time in times)


def test_a_frame_is_decoded_when_the_one_before_is_resized() -> None:
    """The third one is no picture, and is not reached."""
    frames = png(320, 320), png(320, 640), b"broken"
    (error,) = prepare("q", {"video": Video(frames=frames)}).pairs
    assert isinstance(error, AspectRatio)


def test_a_query_sets_its_own_options() -> None:
    image = png(320, 320)
    small = prepare("q", {"image": image}, options=QueryOptions(image_max_pixels=128 * 128))
    short = prepare("q", "word " * 500, options=QueryOptions(max_length=100))
    usual = prepare("q", {"image": image}, "word " * 500)
    assert [pair_of(each).num_visual_tokens for each in (small, usual)] == [16, 100]
    assert (pair_of(short).num_tokens, pair_of(short).is_truncated) == (105, True)
    assert not pair_of(usual, 1).is_truncated


def test_a_query_sets_the_sampling_of_its_videos() -> None:
    video = {"video": "media/v9s_10.mp4"}
    for options, count in [(QueryOptions(), 4), (QueryOptions(fps=2.0), 9)]:
        assert timestamps(prepare("q", video, options=options)).count("seconds>") == count
    few = timestamps(prepare("q", video, options=QueryOptions(max_frames=4)))
    assert "<1.5 seconds>" in few and "<7.4 seconds>" in few  # frames 0, 30, 59, 89 at 10 fps


def test_options_that_contradict_the_configuration_are_the_querys_error() -> None:
    pairs = prepare("q", "a", "b", options=QueryOptions(image_min_pixels=2_000_000)).pairs
    assert [type(pair) for pair in pairs] == [InvalidContent, InvalidContent]
    assert "image_min_pixels must not exceed image_max_pixels" in str(pairs[0])


def test_special_tokens_are_neutral_unless_official() -> None:
    official = preprocessor(special_tokens="official")
    candidates = CandidateSet.parse("q", ["a <|image_pad|>", "b <|im_end|>", "c"])
    neutral_pairs, pairs = PLAIN.prepare(candidates).pairs, official.prepare(candidates).pairs
    assert [type(pair) for pair in neutral_pairs] == [PreparedPair] * 3
    assert [type(pair) for pair in pairs] == [SpecialTokenInText, PreparedPair, PreparedPair]


def test_a_prepared_set_survives_pickling() -> None:
    before = prepare("q", {"image": png(64, 64)}, {"image": b"broken"}, "a")
    after = pickle.loads(pickle.dumps(before))
    assert same(pair_of(after), pair_of(before)) and same(pair_of(after, 2), pair_of(before, 2))
    assert (type(after.pairs[1]), str(after.pairs[1])) == (ImageDecodeError, str(before.pairs[1]))
    assert np.array_equal(after.visuals[0].pixels, before.visuals[0].pixels)
    assert after.size_bytes == before.size_bytes > 64 * 64 * 3


def test_the_same_image_is_prepared_the_same_again() -> None:
    image = {"image": png(100, 100)}
    first, again = prepare("q", image), prepare("q", image)
    assert np.array_equal(first.visuals[0].pixels, again.visuals[0].pixels)


def test_a_path_and_bytes_that_spell_it_are_not_mistaken() -> None:
    path = "media/sq_64x64.png"
    pairs = prepare("q", {"image": path}, {"image": path.encode()}).pairs
    assert [type(pair) for pair in pairs] == [PreparedPair, ImageDecodeError]


def test_pairs_of_one_document_are_those_of_candidate_sets() -> None:
    document = Content.parse({"image": png(96, 64, seed=3), "text": "a page"})
    queries = [
        ("one", None, QueryOptions()),
        ({"image": png(64, 64, seed=4)}, "find it", QueryOptions()),
        ("three", None, QueryOptions(image_max_pixels=4_096)),
        ({"image": b"broken"}, None, QueryOptions()),
        ("five", None, QueryOptions(max_length=9)),
        ("six", None, QueryOptions(image_min_pixels=10_000_000)),
    ]
    opened = PLAIN.open_document(document, "documents[0]")
    shared = PLAIN.prepare_pairs(
        (PLAIN.open_query(Content.parse(query), *more), opened) for query, *more in queries
    )
    for index, (query, *more) in enumerate(queries):
        alone = PLAIN.prepare(CandidateSet.parse(query, [document], *more))
        if isinstance(alone.pairs[0], RerankError):
            assert repr(shared.pairs[index]) == repr(alone.pairs[0])
        else:
            assert same(pair_of(shared, index), pair_of(alone))
    assert len(shared.visuals) == 3  # the page in two sizes, and one query's image


def test_a_document_is_read_once_for_all_its_pairs(tmp_path: Path) -> None:
    frames = [tmp_path / "0.png", tmp_path / "1.png"]
    for index, path in enumerate(frames):
        path.write_bytes(png(64, 64, seed=index))
    fresh = Preprocessor(RerankerConfig(str(GOLDEN / "tiny")))
    document = fresh.open_document(Content.parse({"video": [str(path) for path in frames]}))
    first = fresh.prepare_pairs([(fresh.open_query(Content.parse("one")), document)])
    for path in frames:
        path.unlink()
    options = QueryOptions(max_length=500)
    second = fresh.prepare_pairs(
        [(fresh.open_query(Content.parse("two"), "find it", options), document)]
    )
    assert [visual.key for visual in second.visuals] == [visual.key for visual in first.visuals]


NARROW = preprocessor(max_visual_tokens=40)
LARGE = QueryOptions(image_min_pixels=256 * 256)  # 64 tokens of any image
CLIP = "media/v2s_24.mp4"


@pytest.mark.parametrize(
    ("query", "document", "options", "num_decoded"),
    [
        ("q", {"image": [png(1, 1)]}, LARGE, 0),
        ("q", {"image": [png(64, 64, seed=number) for number in range(24)]}, {}, 0),
        ("q", {"image": ["media/sq_64x64.png"] * 24}, {}, 1),  # a path is read first, and once
        ("q", {"video": {"frames": [png(256, 256)] * 4}}, {}, 0),
        ("q", {"video": CLIP}, {}, 0),  # two frames at least
        ({"image": png(160, 160)}, {"image": png(160, 160, seed=1)}, {}, 2),  # 25 and 25
    ],
)
def test_a_pair_of_too_many_visual_tokens_is_refused_by_their_sizes(
    query: Any, document: Any, options: Any, num_decoded: int
) -> None:
    """Truncation never cuts them, so a small request could ask for any number."""
    asked: list[None] = []
    permit = lambda: asked.append(None)  # noqa: E731
    own = options or QueryOptions()
    opened = NARROW.open_query(Content.parse(query), None, own, permit=permit)
    pair = opened, NARROW.open_document(Content.parse(document), permit=permit)
    (error,) = NARROW.prepare_pairs([pair]).pairs
    assert isinstance(error, TooManyVisualTokens), error
    assert "over the limit of 40 of a pair" in str(error)
    assert len(asked) == num_decoded


def test_a_video_file_of_too_many_visual_tokens_is_not_decoded_whole() -> None:
    wide = preprocessor(max_visual_tokens=200)
    (error,) = wide.prepare(CandidateSet.parse("q", [{"video": CLIP}])).pairs
    assert isinstance(error, TooManyVisualTokens) and "v2s_24.mp4: 2" in str(error)


def test_who_has_left_stops_the_reading_before_the_next_medium() -> None:
    class Left(Exception):
        pass

    asked: list[None] = []

    def permit() -> None:
        asked.append(None)
        if len(asked) == 3:
            raise Left

    images = [png(64, 64, seed=number) for number in range(8)]
    document = PLAIN.open_document(Content.parse({"image": images}), permit=permit)
    (error,) = PLAIN.prepare_pairs([(PLAIN.open_query(Content.parse("q")), document)]).pairs
    assert isinstance(error, RerankError) and len(asked) == 3
