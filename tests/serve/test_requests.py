"""Requests of all dialects: what is accepted, what is refused, what the fields mean."""

import pytest
from pydantic import ValidationError

from shardrank.serve.dialects.others import DashScopeRequest, ScoreRequest
from shardrank.serve.dialects.requests import MediaOptions, RerankRequest

REQUEST = {"query": "q", "documents": ["a", "b"]}


def rerank(**fields) -> RerankRequest:
    return RerankRequest.model_validate(REQUEST | fields)


def test_every_optional_field_accepts_null():
    names = {field.alias or name for name, field in RerankRequest.model_fields.items()}
    names -= {"query", "documents"}
    assert rerank(**dict.fromkeys(names)) == rerank()


@pytest.mark.parametrize(
    ("fields", "limit"),
    [({}, None), ({"top_n": 0}, None), ({"top_n": 1}, 1), ({"top_k": 2}, 2), ({"top_n": 9}, 9)],
)
def test_top_n_and_top_k_limit(fields, limit):
    assert rerank(**fields).limit == limit


@pytest.mark.parametrize(
    "fields",
    [
        {"documents": None},
        {"texts": ["a"]},
        {"passages": ["a"]},
        {"query": 3},
        {"documents": [True]},
        {"top_n": -1},
        {"top_n": True},
        {"top_n": "two"},
        {"top_n": 1.5},
        {"top_k": -3},
        {"max_tokens_per_doc": 0},
        {"truncate_prompt_tokens": -2},
        {"truncation_side": "middle"},
        {"on_error": "ignore"},
        {"fps": 0},
        {"fps": float("nan")},
        {"mm_processor_kwargs": {"max_pixels": -1}},
        {"mm_processor_kwargs": {"max_frames": "many"}},
    ],
)
def test_what_makes_no_sense_is_refused(fields):
    with pytest.raises(ValidationError):
        rerank(**fields)


MEANINGS = {
    "may_truncate": [
        ({}, True),
        ({"truncation": True}, True),
        ({"truncation": False}, False),
        ({"truncate": False}, False),
        ({"truncate": "NONE"}, False),
        ({"truncate": "END"}, True),
    ],
    "keeps_the_end": [
        ({}, False),
        ({"truncation_side": "left"}, True),
        ({"truncation_side": "right"}, False),
        ({"truncation_direction": "Left"}, True),
        ({"truncate": "START"}, True),
    ],
    "is_raw": [
        ({}, False),
        ({"raw_scores": True}, True),
        ({"use_activation": False}, True),
        ({"activation": False}, True),
    ],
    "media": [
        (
            {"mm_processor_kwargs": {"fps": 1.0, "max_frames": 8}, "fps": 2.0},
            MediaOptions(fps=2.0, max_frames=8),
        ),
    ],
}


@pytest.mark.parametrize(
    ("name", "fields", "value"),
    [(name, *case) for name, cases in MEANINGS.items() for case in cases],
)
def test_what_the_fields_mean(name, fields, value):
    assert getattr(rerank(**fields), name) == value


def test_unknown_fields_are_kept_by_name():
    request = rerank(temperature=1, mm_processor_kwargs={"size": 3})
    assert request.unknown_fields == ["temperature", "mm_processor_kwargs.size"]


@pytest.mark.parametrize(
    "names",
    [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")],
)
def test_score_has_four_pairs_of_fields(names):
    assert ScoreRequest(**dict.fromkeys(names, "t")).fields == names


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"queries": "q"},
        {"text_1": "a", "data_2": "b"},
        dict.fromkeys(("text_1", "text_2", "data_1", "data_2"), "t"),
    ],
)
def test_score_wants_exactly_one_pair_of_fields(fields):
    with pytest.raises(ValidationError, match="give queries and documents"):
        ScoreRequest(**fields)


def test_dashscope_is_a_rerank_request():
    body = {
        "model": "m",
        "input": {"query": {"image": "https://host/a"}, "documents": ["a"]},
        "parameters": {"top_n": 1, "instruct": "i", "return_documents": True},
    }
    request = DashScopeRequest.model_validate(body).as_rerank()
    assert (request.limit, request.instruct, request.return_documents) == (1, "i", True)
    del body["parameters"]
    assert DashScopeRequest.model_validate(body).as_rerank().return_documents is False
