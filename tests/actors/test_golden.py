"""Held against the official implementation: 52 pairs, token ids and float32 scores."""

import pytest

from shardrank.actors.prepared import PreparedPair
from tests.support.engine import candidate_set, golden_cases, tiny_reranker

SCORED = [case for case in golden_cases() if case["kind"] != "error"]
REFUSED = [case for case in golden_cases() if case["kind"] == "error"]


def official():
    return tiny_reranker(special_tokens="official", empty="official", image_depth="official")


def case_id(case):
    return f"{case['id']}-{case['kind']}"


def patch_grids(prepared):
    return [(v.pixels.shape[1] // 16, v.pixels.shape[2] // 16) for v in prepared.visuals]


def official_grids(case):
    """(rows, columns) in patches of each image and of each pair of video frames."""
    grids = case["official"].get("image_grid_thw", []) + case["official"].get("video_grid_thw", [])
    return [(height, width) for time, height, width in grids for _ in range(time)]


def test_there_are_cases_of_every_kind():
    kinds = {case["kind"] for case in golden_cases()}
    assert len(golden_cases()) == 52
    assert kinds >= {"text", "null", "trunc", "image", "mode", "multi", "vframes", "vfile", "error"}


@pytest.mark.parametrize("case", SCORED, ids=case_id)
def test_token_ids_and_grids_equal_the_official_ones(case):
    prepared = official().preprocessor.prepare(candidate_set(case))
    expected = [token for token, count in case["official"]["ids_rle"] for _ in range(count)]
    assert prepared.pairs[0].input_ids.tolist() == expected
    assert sorted(patch_grids(prepared)) == sorted(official_grids(case))


@pytest.mark.parametrize("case", SCORED, ids=case_id)
def test_score_equals_the_official_one(case):
    scored = official().score_sets([candidate_set(case)])[0][0]
    assert scored.error is None
    assert scored.score == pytest.approx(case["official"]["score"], abs=1e-4)


def test_all_cases_packed_together_keep_their_official_scores():
    scores = official().score_sets([candidate_set(case) for case in SCORED])
    for case, scored in zip(SCORED, scores, strict=True):
        assert scored[0].score == pytest.approx(case["official"]["score"], abs=1e-4), case["id"]


@pytest.mark.parametrize("case", REFUSED, ids=case_id)
def test_what_the_official_scorer_scores_as_null_is_an_error_here(case):
    scored = official().score_sets([candidate_set(case)])[0][0]
    assert scored.score is None
    assert scored.error is not None


def test_neutralised_is_the_same_where_no_special_token_is_typed():
    plain = [case for case in SCORED if "<|" not in str(case["query"]) + str(case["document"])]
    assert len(plain) > 40
    preprocessor = tiny_reranker(empty="official").preprocessor
    for case in plain:
        pair = preprocessor.prepare(candidate_set(case)).pairs[0]
        assert isinstance(pair, PreparedPair)
        assert sum(count for _, count in case["official"]["ids_rle"]) == pair.num_tokens
