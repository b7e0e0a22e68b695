import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from shardrank.actors.config import RerankerConfig
from shardrank.actors.families.qwen3_vl_reranker import QWEN3_VL_RERANKER
from shardrank.actors.fetch.web import WebMedia
from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.forms import InputOptions, open_job_input
from shardrank.jobs.outputs.files import Output
from shardrank.jobs.outputs.job import Job, check_same_job, job_fingerprint
from shardrank.jobs.outputs.manifest import Manifest
from shardrank.jobs.run.pool import Pool, settled_dtype
from shardrank.jobs.storage import Location
from shardrank.jobs.units.plan import plan_units
from tests.support.job_cases import CONFIG, text_rows, write_sets


def fingerprint(tmp_path: Path, config: RerankerConfig) -> Job:
    path = tmp_path / "sets.parquet"
    if not path.exists():
        write_sets(path, text_rows(2, 2))
    opened = open_job_input(InputOptions(str(path)))
    return job_fingerprint(
        opened, plan_units(opened, 4), config, QWEN3_VL_RERANKER, {"sha256": "x"}, 4, False
    )


def check(tmp_path: Path, before: Job, config: RerankerConfig) -> None:
    directory = Location.parse(str(tmp_path / "out"))
    check_same_job(directory, before, fingerprint(tmp_path, config))


def test_settings_that_came_later_are_not_in_a_directorys_fingerprint(tmp_path: Path) -> None:
    """A directory that was begun without them is gone on with."""
    options = fingerprint(tmp_path, CONFIG)["options"]
    assert "media_root" in options
    assert not {"web_media", "local_media"} & set(options)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"local_media": False}, "options.local_media was null and is now false"),
        ({"media_root": "/media"}, 'options.media_root was null and is now "/media"'),
    ],
)
def test_a_setting_that_decides_on_scores_is_another_job(
    tmp_path: Path, setting: dict[str, Any], sentence: str
) -> None:
    before = fingerprint(tmp_path, CONFIG)
    with pytest.raises(UsageError) as raised:
        check(tmp_path, before, replace(CONFIG, **setting))
    assert sentence in str(raised.value)


def test_auto_is_not_two_dtypes_in_one_output(tmp_path: Path) -> None:
    output = Output(Location.parse(str(tmp_path / "out")), False)
    begun = Manifest(output, {}, {})
    for _ in range(2):
        begun.settle_dtype(settled_dtype("auto", Pool(1, 1, 0)))
    assert begun.dtype == "float32"
    with pytest.raises(UsageError, match="scored in float32 so far, and --dtype auto means bfl"):
        begun.settle_dtype(settled_dtype("auto", Pool(1, 0, 1)))
    begun.settle_dtype(settled_dtype("float32", Pool(1, 0, 1)))


def test_a_setting_that_decides_on_speed_alone_is_the_same_job(tmp_path: Path) -> None:
    before = fingerprint(tmp_path, CONFIG)
    check(tmp_path, before, replace(CONFIG, num_threads=7, max_batch_tokens=9_999))


@pytest.mark.parametrize("before", [None, WebMedia(), WebMedia(max_bytes=7)])
def test_what_may_be_fetched_decides_on_what_is_still_to_do_alone(
    tmp_path: Path, before: WebMedia | None
) -> None:
    """Also in a directory of a version that kept it."""
    job = fingerprint(tmp_path, CONFIG)
    job["options"] = dict(job["options"])
    if before is not None:
        job["options"]["web_media"] = asdict(before)
    changed = replace(CONFIG, web_media=WebMedia(allowed_networks=("10.0.0.0/8",)))
    check(tmp_path, json.loads(json.dumps(job)), changed)


def test_a_web_policy_is_the_same_after_it_was_saved(tmp_path: Path) -> None:
    config = replace(CONFIG, web_media=WebMedia(allowed_networks=("10.0.0.0/8",)))
    check(tmp_path, json.loads(json.dumps(fingerprint(tmp_path, config))), config)


def test_media_roots_are_kept_absolute_and_without_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = "s3://KEY:SECRET@bucket/pics", "pics", "/more"
    monkeypatch.chdir(tmp_path)
    kept = fingerprint(tmp_path, replace(CONFIG, media_root=roots))
    assert kept["options"]["media_root"] == (
        "s3://***@bucket/pics",
        str(tmp_path / "pics"),
        "/more",
    )
    rotated = replace(CONFIG, media_root=("s3://KEY2:SECRET2@bucket/pics", *roots[1:]))
    check(tmp_path, json.loads(json.dumps(kept)), rotated)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(UsageError, match="options.media_root"):
        check(tmp_path, json.loads(json.dumps(kept)), rotated)


@pytest.mark.parametrize("roots", [None, ()])
def test_no_media_root_is_kept_as_it_is(tmp_path: Path, roots: Any) -> None:
    kept = fingerprint(tmp_path, replace(CONFIG, media_root=roots))
    assert kept["options"]["media_root"] == roots


def test_a_manifest_is_saved_as_it_was_read_whatever_version_wrote_it(tmp_path: Path) -> None:
    """What this version does not know stays, and what is not there does not come."""
    growth = {"record": "growth-2.parquet", "num": 2, "is_open": False}
    kept = {"status": "finished", "job": {"num_units": 1}, "seconds": 1.5, "num_runs": 3}
    kept |= {"model": {"name": "m", "revision": None}, "versions": {}, "started": "then"}
    kept |= {"num_queries": 1, "num_pairs": 2, "num_failed": 0, "num_truncated": 0}
    kept |= {"num_tokens": 7, "num_visual_tokens": 0, "errors": {}, "growth": growth, "later": 1}
    (tmp_path / "manifest.json").write_text(json.dumps(kept))
    manifest = Manifest.read(Output(Location.parse(str(tmp_path))))
    assert manifest is not None and manifest.counts is not None and manifest.growth is not None
    assert (manifest.counts.num_pairs, manifest.growth.num) == (2, 2)
    manifest.save()
    saved = json.loads((tmp_path / "manifest.json").read_text())
    assert saved.pop("updated") and saved == kept


@pytest.mark.parametrize("text", ["{", "[]", '{"status": "running"}', '"job"'])
def test_a_file_that_is_no_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UsageError, match="manifest.json is not a manifest"):
        Manifest.read(Output(Location.parse(str(tmp_path))))
