"""Each family held against its official implementation: token ids, scores and vectors."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardrank.actors import CandidateSet, Embedder, QueryOptions, Reranker
from shardrank.actors.config import EmbeddingOptions, RerankerConfig
from shardrank.actors.data import Content, Embedding, PairScore
from shardrank.actors.families.choice import family_of
from shardrank.actors.families.family import Family
from shardrank.actors.families.qwen3_embedding import QWEN3_EMBEDDING
from shardrank.actors.families.qwen3_reranker import QWEN3_RERANKER
from shardrank.actors.families.qwen3_vl_embedding import QWEN3_VL_EMBEDDING
from shardrank.actors.families.qwen3_vl_reranker import QWEN3_VL_RERANKER
from shardrank.actors.prepared import PreparedPair
from shardrank.actors.sides import OpenSide
from tests.support.engine import GOLDEN, TINY

OFFICIAL = {"special_tokens": "official", "empty": "official", "image_depth": "official"}
Case = dict[str, Any]


def cases(name: str) -> list[Case]:
    lines = (GOLDEN / name).read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


EMBEDDED = cases("embedding/cases.jsonl")
TEXTS = cases("text-embedding/cases.jsonl")
PAIRS = cases("text-reranker/cases.jsonl")
CLASSIFIED = cases("text-reranker/cases-seq-cls.jsonl")


def failing(case: Case) -> bool:
    return case["kind"] in ("error", "raises")


def case_id(case: Case) -> str:
    return f"{case['id']}-{case['kind']}"


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints whose tokenizer ends each text with `<|endoftext|>`."""
    folder = tmp_path_factory.mktemp("closed")
    made = {}
    for name, model, tokenizer in [
        ("embedding", TINY, GOLDEN / "embedding" / "tokenizer-eot"),
        ("reranker", GOLDEN / "text-reranker" / "tiny-tied", GOLDEN / "text-embedding" / "tiny"),
    ]:
        made[name] = shutil.copytree(model, folder / name)
        shutil.copy(tokenizer / "tokenizer.json", made[name])
    return made


@cache
def embedder(model: Path) -> Embedder:
    return Embedder(str(model), media_root=str(GOLDEN), **OFFICIAL)


@cache
def reranker(model: Path, adapter: Path | None = None) -> Reranker:
    own = None if adapter is None else str(adapter)
    return Reranker(str(model), adapter=own, media_root=str(GOLDEN), **OFFICIAL)


def options_of(case: Case) -> QueryOptions:
    """What counts officially: of a video file its own sampling, of frames the constructor's."""
    given = {"max_length": case["max_length"]} if "max_length" in case else {}
    content = case.get("input", {})
    if isinstance(content.get("video"), str):
        given |= {name: content[name] for name in ("fps", "max_frames") if name in content}
    return QueryOptions(**given, **case.get("init", {}))


def content_of(case: Case) -> Any:
    if "input" not in case:
        return case["text"]
    known = ("text", "image", "video")
    return {name: case["input"][name] for name in known if name in case["input"]}


def embedded(model: Embedder, case: Case) -> Embedding:
    given = case.get("input", case).get("instruction")
    role = "query" if case.get("is_query") else "document"
    (found,) = model.embed_contents([content_of(case)], role, given, options_of(case))
    return found.cut(case.get("dim"))


def assert_equal(found: Embedding, case: Case) -> None:
    assert found.error is None
    assert found.embedding is not None
    np.testing.assert_allclose(found.embedding, case["official"]["embedding"], atol=1e-5)
    assert found.num_tokens == case["official"]["num_tokens"]


def ids_of(case: Case) -> list[int]:
    return [token for token, count in case["official"]["ids_rle"] for _ in range(count)]


@pytest.mark.parametrize("case", EMBEDDED, ids=case_id)
def test_an_embedding_is_the_official_one(case: Case, closed: dict[str, Path]) -> None:
    model = embedder(closed["embedding"] if "tokenizer" in case else TINY)
    found = embedded(model, case)
    if failing(case):
        assert found.embedding is None
        assert found.error is not None
        return
    assert_equal(found, case)
    side = OpenSide(Content.parse(content_of(case)), "document")
    given = case["input"].get("instruction")
    opened = model.preprocessor.open_text(side, "document", given, options_of(case))
    (pair,) = model.preprocessor.prepare_texts([opened]).pairs
    assert isinstance(pair, PreparedPair)
    assert pair.input_ids.tolist() == ids_of(case)


@pytest.mark.parametrize("case", TEXTS, ids=case_id)
def test_a_text_embedding_is_the_official_one(case: Case) -> None:
    assert_equal(embedded(embedder(GOLDEN / "text-embedding" / "tiny"), case), case)


def test_embeddings_packed_together_are_the_official_ones() -> None:
    for model, together in [
        (TINY, [each for each in EMBEDDED if "tokenizer" not in each and not failing(each)]),
        (GOLDEN / "text-embedding" / "tiny", TEXTS),
    ]:
        preprocessor = embedder(model).preprocessor
        opened = [
            preprocessor.open_text(
                OpenSide(Content.parse(content_of(case)), "text"),
                "query" if case.get("is_query") else "document",
                case.get("input", case).get("instruction"),
                options_of(case),
            )
            for case in together
        ]
        (found,) = embedder(model).scorer.embed([preprocessor.prepare_texts(opened)])
        for each, case in zip(found, together, strict=True):
            assert_equal(each.cut(case.get("dim")), case)


def pair_set(case: Case) -> CandidateSet:
    query = case["query"] if isinstance(case["query"], dict) else {"text": case["query"]}
    given = {name: case[name] for name in ("max_length", "fps", "max_frames") if name in case}
    return CandidateSet.parse(
        query, [case["document"]], case.get("instruction"), QueryOptions(**given)
    )


def scored(model: Reranker, case: Case) -> PairScore:
    return model.score_sets([pair_set(case)])[0][0]


@pytest.mark.parametrize("case", PAIRS, ids=case_id)
def test_a_text_pairs_score_is_the_official_one(case: Case, closed: dict[str, Path]) -> None:
    models = {name: GOLDEN / "text-reranker" / f"tiny-{name}" for name in ("tied", "untied")}
    if "tokenizer" in case:
        models = {"tied": closed["reranker"]}
    for name, model in models.items():
        found = scored(reranker(model), case)
        if failing(case):
            assert str(found.error) == "max_length 50 is under the 59 tokens of the prompt"
            continue
        assert found.score == pytest.approx(case["official"][name], abs=1e-4)
        (pair,) = reranker(model).preprocessor.prepare(pair_set(case)).pairs
        assert isinstance(pair, PreparedPair)
        assert pair.input_ids.tolist() == ids_of(case)


@pytest.mark.parametrize("case", CLASSIFIED, ids=case_id)
def test_a_classifiers_score_is_the_official_one(case: Case) -> None:
    found = scored(reranker(GOLDEN / "text-reranker" / "tiny-seq-cls"), case)
    assert found.score == pytest.approx(case["official"]["score"], abs=1e-4)
    assert found.logit == pytest.approx(case["official"]["logit"], abs=1e-4)


def test_text_pairs_packed_together_have_the_official_scores() -> None:
    together = [each for each in PAIRS if "tokenizer" not in each and not failing(each)]
    model = reranker(GOLDEN / "text-reranker" / "tiny-untied")
    for (found,), case in zip(model.score_sets([*map(pair_set, together)]), together, strict=True):
        assert found.score == pytest.approx(case["official"]["untied"], abs=1e-4), case["id"]


PLAIN = ("text", "instruction", "query", "document", "image", "vfile", "trunc")


@pytest.mark.parametrize(
    ("model", "together"),
    [
        (TINY, [case for case in EMBEDDED if "tokenizer" not in case]),
        (GOLDEN / "text-embedding" / "tiny", TEXTS),
    ],
)
def test_read_as_plain_text_an_embedding_is_still_the_official_one(
    model: Path, together: list[Case]
) -> None:
    """A family's own tokens are tokens, whatever is made of those in a text."""
    plain = Embedder(str(model), media_root=str(GOLDEN))
    for case in together:
        if case["kind"] in PLAIN:
            assert_equal(embedded(plain, case), case)


def test_read_as_plain_text_a_pair_still_has_the_official_score() -> None:
    plain = Reranker(str(GOLDEN / "text-reranker" / "tiny-tied"))
    for case in PAIRS:
        if case["kind"] in ("text", "instruction") and "tokenizer" not in case:
            assert scored(plain, case).score == pytest.approx(case["official"]["tied"], abs=1e-4)


# Which family a checkpoint is of


@pytest.mark.parametrize(
    ("model", "family"),
    [
        (TINY, QWEN3_VL_RERANKER),
        (TINY, QWEN3_VL_EMBEDDING),
        (GOLDEN / "text-reranker" / "tiny-tied", QWEN3_RERANKER),
        (GOLDEN / "text-embedding" / "tiny", QWEN3_EMBEDDING),
    ],
)
def test_architecture_and_task_name_the_family(model: Path, family: Family) -> None:
    assert family_of(model, family.task) is family


@pytest.mark.parametrize(
    ("embedding", "module", "sentence"),
    [
        (None, "sentence_transformers.models.Pooling", "has a Pooling: an embedder, no rer"),
        (EmbeddingOptions(), "a.b.LogitScore", "has a LogitScore: a reranker, no embedder"),
    ],
)
def test_a_checkpoint_that_says_it_is_of_the_other_task_is_refused(
    tmp_path: Path, embedding: EmbeddingOptions | None, module: str, sentence: str
) -> None:
    model = shutil.copytree(GOLDEN / "text-reranker" / "tiny-tied", tmp_path / "model")
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_x", "type": module}]
    (model / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=sentence):
        Reranker(RerankerConfig(str(model), embedding=embedding))


def test_a_classifier_is_no_embedder() -> None:
    with pytest.raises(ValueError, match="architecture Qwen3ForSequenceClassification: of a Qwen3"):
        Embedder(str(GOLDEN / "text-reranker" / "tiny-seq-cls"))


# What users meet


def test_a_model_for_texts_refuses_media_and_keeps_the_other_documents() -> None:
    model = reranker(GOLDEN / "text-reranker" / "tiny-tied")
    image = {"image": "media/p320x240.png"}
    (text, page) = model.score_sets([CandidateSet.parse("q", ["d", image])])[0]
    assert text.error is None
    assert str(page.error) == "documents[1] has an image or a video: Qwen3-Reranker reads texts"


def test_what_says_nothing_is_an_error_unless_asked_for() -> None:
    model = Embedder(str(GOLDEN / "text-embedding" / "tiny"))
    found = model.embed_contents(["a", " ", None])
    assert [each.error and each.error.code for each in found] == [None, *["empty_document"] * 2]


def test_vectors_are_unit_vectors_of_the_dimensions_asked_for() -> None:
    model = embedder(GOLDEN / "text-embedding" / "tiny")
    vectors = model.embed(["one", "two"], dimensions=16)
    assert vectors.shape == (2, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for wrong in (0, 65):
        with pytest.raises(ValueError, match=f"dimensions must be 1 to 64, got {wrong}"):
            model.embed(["one"], dimensions=wrong)
    with pytest.raises(ValueError, match="contents must be a list, got one str"):
        model.embed("one")
    with pytest.raises(ValueError, match="role must be query or document, got 'passage'"):
        model.embed(["one"], "passage")  # type: ignore[arg-type]
    assert model.embed([], dimensions=16).shape == (0, 16)


def test_a_blank_instruction_is_the_default() -> None:
    blank = Embedder(str(TINY), instruction=" ").embed(["one"])
    np.testing.assert_allclose(blank, Embedder(str(TINY)).embed(["one"]), atol=1e-6)


def test_a_text_of_no_token_is_its_own_error() -> None:
    model = Embedder(str(GOLDEN / "text-reranker" / "tiny-tied"), empty="official")
    found = model.embed_contents(["", "one"])
    assert [each.error and str(each.error) for each in found] == ["document[0] has no token", None]
