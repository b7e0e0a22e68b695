"""Metrics by their names, and a dashboard that asks for names that there are."""

import json
import re
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
