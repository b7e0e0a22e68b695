"""Metrics by their names, and a dashboard that asks for names that there are."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from shardrank.serve.metrics import Metrics

DASHBOARD = Path(__file__).parents[2] / "serve" / "grafana.json"


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bshardrank_\w+", text))


def observed() -> Metrics:
    metrics = Metrics()
    metrics.request({}, 200, 0.1)
    metrics.failed_pair("image_decode")
    metrics.batch(3, 100, 0.5, 0.1)
    metrics.queue(2, 50)
    metrics.cache(4, 1)
    return metrics


def test_the_dashboard_shows_only_what_is_measured():
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in names_in(target["expr"])
    }
    assert len(asked) >= 9 and asked <= names_in(observed().text().decode())


def test_the_caches_totals_become_increments():
    metrics = observed()
    metrics.cache(6, 1)
    text = metrics.text().decode()
    assert 'shardrank_vision_cache_total{result="hit"} 6.0' in text
    assert 'shardrank_vision_cache_total{result="miss"} 1.0' in text


def test_an_unknown_path_is_no_series_of_its_own():
    metrics = observed()
    metrics.request({"path": "/a/strange/one"}, 404, 0.1)
    assert "strange" not in metrics.text().decode()


class Replica:
    """Another process, which observes one request for each line that it reads."""

    CODE = """if True:
        import sys
        from shardrank.serve.metrics import Metrics
        metrics = Metrics()
        for line in sys.stdin:
            metrics.request({}, 200, 0.1)
            print(metrics.text().decode().count('status="200"} 2.0'), flush=True)
        metrics.close()
    """

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.CODE],
            env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(directory)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sees_two_requests(self) -> bool:
        assert self._process.stdin and self._process.stdout
        print(file=self._process.stdin, flush=True)
        return self._process.stdout.readline() == "1\n"

    def end(self) -> str:
        return self._process.communicate()[1]


def test_replicas_of_one_server_add_up_and_the_last_one_removes_what_they_wrote(tmp_path):
    ours, others = tmp_path / "ours", tmp_path / "others"
    first, second, other = Replica(ours), Replica(ours), Replica(others)
    assert not other.sees_two_requests() and not first.sees_two_requests()
    assert second.sees_two_requests()
    assert ours.stat().st_mode & 0o777 == 0o700
    assert first.end() == "" and list(ours.glob("counter_*.db"))
    assert second.end() == other.end() == "" and not list(tmp_path.iterdir())


def test_a_directory_that_others_may_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o770)
    assert "must be a directory of this user alone" in Replica(tmp_path).end()
    (tmp_path / "link").symlink_to(tmp_path)
    assert "must be a directory of this user alone" in Replica(tmp_path / "link").end()
