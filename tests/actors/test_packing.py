import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shardrank.actors.packing import (
    MIN_SHARED_TOKENS,
    attention_plan,
    last_token_plan,
    pack,
    sharing_keys,
)
from shardrank.actors.prepared import PreparedPair


def pair_of(ids, visual_index=None):
    length = len(ids)
    visual = np.full(length, -1) if visual_index is None else np.array(visual_index)
    return PreparedPair(
        input_ids=np.array(ids, dtype=np.int32),
        position_ids=np.tile(np.arange(length, dtype=np.int32), (3, 1)),
        visual_index=visual.astype(np.int32),
        is_truncated=False,
    )


def path_of(batch, row):
    """Key rows of all tokens up to the batch's `row`: ancestors' tokens, then the own segment's."""
    ancestors = [s for s in batch.segments if s.below_start <= row < s.below_end]
    rows = [index for s in ancestors for index in range(s.start, s.end)]
    key_row = row + batch.num_cached
    own = next(s for s in batch.segments if s.start <= key_row < s.end)
    return rows + list(range(own.start, key_row + 1))


def key_ids(batch, prefix=()):
    """The token id at every key row, of a cached prefix first."""
    return np.concatenate([np.array(prefix[: batch.num_cached], dtype=int), batch.input_ids])


def keys_seen(plan):
    """For each query row, the sorted key rows that its blocks let it attend to."""
    seen = [[] for _ in range(plan.num_queries)]
    for level in plan.levels:
        for block in level:
            for query in range(block.query_start, block.query_end):
                end = block.key_end
                if block.is_causal:
                    end = block.key_start + query - block.query_start + 1
                seen[query] += range(block.key_start, end)
                seen[query] += [row for span in block.before for row in range(*span)]
    return [sorted(keys) for keys in seen]


@st.composite
def prefix_sharing_pairs(draw):
    """Token sequences that share, continue and repeat each other."""
    stems = draw(st.lists(st.lists(st.integers(0, 3), max_size=30), min_size=1, max_size=3))
    return [
        pair_of(draw(st.sampled_from(stems)) + draw(st.lists(st.integers(0, 1), max_size=20)) + [9])
        for _ in range(draw(st.integers(1, 8)))
    ]


@settings(max_examples=300, deadline=None)
@given(prefix_sharing_pairs())
def test_every_pair_can_be_read_back_along_its_path(pairs):
    batch = pack(pairs)
    for pair, last_row in zip(pairs, batch.last_rows, strict=True):
        rows = path_of(batch, last_row)
        assert batch.input_ids[rows].tolist() == pair.input_ids.tolist()
        assert batch.position_ids[:, rows].tolist() == pair.position_ids.tolist()


@settings(max_examples=300, deadline=None)
@given(prefix_sharing_pairs(), st.booleans())
def test_a_token_attends_to_its_path_and_to_nothing_else(pairs, gathers):
    batch = pack(pairs)
    seen = keys_seen(attention_plan(batch, gathers))
    assert seen == [sorted(path_of(batch, row)) for row in range(batch.num_tokens)]


@settings(max_examples=300, deadline=None)
@given(prefix_sharing_pairs(), st.booleans())
def test_the_last_layer_attends_for_last_tokens_only_and_alike(pairs, gathers):
    batch = pack(pairs)
    rows = np.unique(batch.last_rows)
    assert keys_seen(last_token_plan(batch, rows, gathers)) == [path_of(batch, row) for row in rows]


@settings(max_examples=500, deadline=None)
@given(prefix_sharing_pairs(), prefix_sharing_pairs(), st.integers(1, 60), st.booleans())
def test_behind_a_cached_prefix_every_token_sees_the_same_tokens(pairs, others, length, gathers):
    """The prefix is a real pair's beginning, of these pairs or of others."""
    keys = sharing_keys((pairs + others)[length % len(pairs + others)])[:length]
    batch = pack(pairs, keys)
    ids = key_ids(batch, keys)
    assert batch.num_cached <= len(keys)
    for index, pair in enumerate(pairs):
        rows = batch.path_rows(index, pair.num_tokens)
        assert ids[rows].tolist() == pair.input_ids.tolist()
        assert rows.tolist() == path_of(batch, batch.last_rows[index])
    seen = keys_seen(attention_plan(batch, gathers))
    assert seen == [sorted(path_of(batch, row)) for row in range(batch.num_tokens)]
    rows = np.unique(batch.last_rows)
    last = keys_seen(last_token_plan(batch, rows, gathers))
    assert last == [sorted(path_of(batch, row)) for row in rows]


def test_a_cached_prefix_is_not_laid_out_again():
    prefix = list(range(50))
    pairs = [pair_of([*prefix, 60 + n, 70, 99]) for n in range(10)]
    batch = pack(pairs, sharing_keys(pairs[0])[:50])
    assert (batch.num_cached, batch.num_tokens) == (50, 10 * 3)
    other = [pair_of([*prefix[:20], 100 + n, *range(200, 210)]) for n in range(3)]
    assert pack(other, sharing_keys(pairs[0])[:50]).num_cached == 20


def test_a_pair_that_is_the_cached_prefix_still_computes_its_last_token():
    pair = pair_of(range(30))
    batch = pack([pair], sharing_keys(pair))
    assert batch.num_tokens > 0
    assert batch.last_rows.tolist() == [batch.num_tokens - 1]


@settings(max_examples=200, deadline=None)
@given(prefix_sharing_pairs(), st.booleans())
def test_no_level_names_a_query_twice(pairs, gathers):
    for level in attention_plan(pack(pairs), gathers).levels:
        rows = [row for block in level for row in range(block.query_start, block.query_end)]
        assert len(rows) == len(set(rows))


def test_a_shared_prefix_is_laid_out_once():
    prefix = list(range(50))
    batch = pack([pair_of([*prefix, 60 + n, 70, 99]) for n in range(10)])
    assert batch.num_tokens == 50 + 10 * 3


def test_a_query_level_is_found_below_the_system_prompt():
    system, queries = list(range(20)), [list(range(100, 120)), list(range(200, 220))]
    pairs = [pair_of(system + query + [300 + n, 9]) for query in queries for n in range(3)]
    assert pack(pairs).num_tokens == 20 + 2 * (20 + 3 * 2)


def test_equal_pairs_are_computed_once():
    batch = pack([pair_of(range(30))] * 4)
    assert batch.num_tokens == 30
    assert batch.last_rows.tolist() == [29] * 4


def test_prefixes_too_short_to_pay_are_not_shared():
    shared = list(range(MIN_SHARED_TOKENS - 1))
    batch = pack([pair_of([*shared, 50]), pair_of([*shared, 60])])
    assert batch.num_tokens == 2 * MIN_SHARED_TOKENS


def test_equal_placeholders_of_different_images_are_not_shared():
    ids = [7] * 8 + [1] * 12 + [9]
    visuals = [[-1] * 8 + [index] * 12 + [-1] for index in (0, 1)]
    batch = pack([pair_of(ids, visuals[0]), pair_of(ids, visuals[1])])
    assert batch.num_tokens == 8 + 2 * 13
    assert sorted(zip(batch.visual_index, batch.visual_offset, strict=True)) == [
        (visual, offset) for visual in (0, 1) for offset in range(12)
    ]


def test_one_image_of_many_pairs_is_laid_out_once():
    ids = [7] * 8 + [1] * 12
    visual = [-1] * 8 + [0] * 12 + [-1] * 2
    batch = pack([pair_of([*ids, 30 + n, 9], visual) for n in range(5)])
    assert batch.num_tokens == 20 + 5 * 2
    assert batch.visual_index.tolist() == [0] * 12
    assert batch.visual_offset.tolist() == list(range(12))


def test_documents_that_continue_each_other_without_end_stay_within_the_depth():
    pairs = [pair_of([5] * (10 * n) + [9]) for n in range(1, 60)]
    batch = pack(pairs)
    assert max(segment.depth for segment in batch.segments) <= 16
    for pair, last_row in zip(pairs, batch.last_rows, strict=True):
        assert batch.input_ids[path_of(batch, last_row)].tolist() == pair.input_ids.tolist()


def test_short_ancestors_come_before_the_own_keys_and_long_ones_are_merged():
    """A system prompt and a query of some tokens, and a query of many, for short documents."""
    system, short, long = list(range(20)), list(range(100, 130)), list(range(200, 900))
    pairs = [pair_of(system + query + [n] * 50) for query in (short, long) for n in range(8)]
    own, *merged = attention_plan(pack(pairs), gathers=True).levels
    assert [(block.num_queries, block.num_keys) for level in merged for block in level] == [
        (8 * 50, 700)
    ]
    assert sorted(block.num_keys for block in own) == [20, 50, *[70] * 8, *[100] * 8, 720]
