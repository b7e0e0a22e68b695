import json
from dataclasses import replace
from pathlib import Path

import pytest

from shardrank.actors.config import QueryOptions, RerankerConfig
from shardrank.actors.families.qwen3_vl_reranker import QWEN3_VL_RERANKER


def config(**settings: object) -> RerankerConfig:
    return RerankerConfig("some/model", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["max_length", "image_max_pixels", "video_total_pixels", "fps"])
@pytest.mark.parametrize("value", [0, -1, True, "64", float("nan"), float("inf")])
def test_an_option_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be .* got {value!r}$"):
        QueryOptions.from_mapping({name: value})


@pytest.mark.parametrize("name", ["max_length", "max_frames", "image_min_pixels"])
def test_only_fps_may_have_a_fraction(name: str) -> None:
    assert QueryOptions(fps=0.5).fps == 0.5
    with pytest.raises(ValueError, match=f"^{name} must be a whole number, got 2.5$"):
        QueryOptions.from_mapping({name: 2.5})


@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_lower_pixel_limit_may_equal_but_not_exceed_the_upper(kind: str) -> None:
    low, high = f"{kind}_min_pixels", f"{kind}_max_pixels"
    QueryOptions.from_mapping({low: 4096, high: 4096})
    with pytest.raises(ValueError, match=f"{low} must not exceed {high}, got 4097 > 4096"):
        QueryOptions.from_mapping({low: 4097, high: 4096})


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown option 'max_lenght'; known.* max_length"):
        QueryOptions.from_mapping({"max_lenght": 5})


def test_options_are_taken_one_by_one() -> None:
    over = QueryOptions(max_length=5).over(QueryOptions(max_length=7, fps=2.0))
    assert over == QueryOptions(max_length=5, fps=2.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "float8"},
        {"special_tokens": "ignore"},
        {"max_batch_tokens": 0},
        {"num_threads": -1},
        {"max_text_chars": 0},
        {"max_decoded_pixels": 1.5},
        {"feature_cache_bytes": -1},
        {"web_media": True},
        {"web_media": {"max_bytes": 5}},
        {"local_media": None},
        {"local_media": 0},
        {"media_root": ""},
        {"media_root": 5},
        {"media_root": ["/a"]},
        {"media_root": ("/a", "")},
        {"media_root": ("/a", "s3://bucket/pages")},
    ],
)
def test_a_setting_out_of_range_is_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must .*got"):
        config(**wrong)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_fp8_goes_with_bfloat16_but_where_a_cpu_imitates_it(dtype: str) -> None:
    with pytest.raises(ValueError, match=f"fp8 goes with dtype bfloat16, got {dtype}"):
        config(quantization="fp8", dtype=dtype, device="cuda")
    config(quantization="fp8", dtype=dtype, device="cpu")
    config(quantization="fp8", device="cuda")


def test_a_model_must_be_given() -> None:
    with pytest.raises(ValueError, match="model must be a string that is not empty"):
        RerankerConfig("")


def test_the_official_constants_fill_what_nobody_sets(tmp_path: Path) -> None:
    official = QueryOptions(
        max_length=10_240,
        image_min_pixels=4_096,
        image_max_pixels=1_843_200,
        video_min_pixels=131_072,
        video_max_pixels=786_432,
        video_total_pixels=7_864_320,
        fps=1.0,
        max_frames=64,
    )
    resolved = config().resolve(of_a_reranker(tmp_path))
    assert resolved.options == official
    assert resolved.instruction == QWEN3_VL_RERANKER.instruction
    assert QWEN3_VL_RERANKER.instruction == (
        "Given a search query, retrieve relevant candidates that answer the query."
    )


def of_a_reranker(checkpoint: Path) -> Path:
    (checkpoint / "config.json").write_text('{"model_type": "qwen3_vl"}')
    return checkpoint


def test_the_user_comes_before_the_checkpoint_and_that_before_the_official(tmp_path: Path) -> None:
    (tmp_path / "reranker.json").write_text(json.dumps({"max_length": 512, "max_frames": 8}))
    options = config(options=QueryOptions(max_frames=16)).resolve(of_a_reranker(tmp_path)).options
    assert (options.max_frames, options.max_length, options.fps) == (16, 512, 1.0)


def test_resolving_changes_options_and_instruction_alone(tmp_path: Path) -> None:
    before = config(dtype="bfloat16", media_root="/media")
    resolved = before.resolve(of_a_reranker(tmp_path))
    assert replace(resolved, options=before.options, instruction=None) == before


@pytest.mark.parametrize(
    "text",
    [b"{", b"[1]", b"[]", b"3", b'{"max_lenght": 1}', b'{"fps": "2"}', b'{"fps": 0}', b"\xff"],
)
def test_a_bad_reranker_json_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "reranker.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"reranker\.json: "):
        config().resolve(of_a_reranker(tmp_path))
