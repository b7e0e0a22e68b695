"""The ways of a batch and of a request grow no longer than they are: a reader walks them."""

from pathlib import Path

import pytest

from tests.support.way import batch_way, num_lines, request_way

BATCH = (64, 13_600)
"""Files, and their lines; a change that makes the way shorter lowers this."""
REQUEST = (29, 6_500)


def test_a_requests_way_is_no_longer_than_it_was() -> None:
    files = request_way()
    assert (len(files) <= REQUEST[0], num_lines(files) <= REQUEST[1]) == (True, True), files


@pytest.mark.faults
def test_a_batchs_way_is_no_longer_than_it_was(tmp_path: Path) -> None:
    files = batch_way(tmp_path)
    assert (len(files) <= BATCH[0], num_lines(files) <= BATCH[1]) == (True, True), files
