"""This project's engine, called once for every pair: nothing packed, nothing shared."""

from __future__ import annotations

from bench.peers.ours import forget_inputs, make_reranker, score_of, versions
from bench.peers.protocol import CandidateSet, PeerSettings, serve


class OursOne:
    label = "ours, pair by pair"
    work = "one_by_one"

    def __init__(self, settings: PeerSettings) -> None:
        self._reranker = make_reranker(settings, feature_cache_bytes=0)
        self.versions = versions()

    def forget(self) -> None:
        forget_inputs(self._reranker)

    def score(self, sets: list[CandidateSet]) -> list[list[float]]:
        from shardrank.actors import CandidateSet as Parsed

        def score_pair(one: CandidateSet, document: object) -> float:
            parsed = Parsed.parse(one["query"], [document], one["instruction"])
            return score_of(self._reranker.score_sets([parsed])[0][0])

        return [[score_pair(one, document) for document in one["documents"]] for one in sets]


if __name__ == "__main__":
    serve(OursOne)
