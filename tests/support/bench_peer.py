"""A peer of the standard library alone, which misbehaves as its checkpoint's name says."""

import os
import time

from bench.peers.protocol import CandidateSet, Peer, PeerSettings, Unavailable


class StandInPeer(Peer):
    label = "stand-in"
    packages = ()

    def __init__(self, settings: PeerSettings) -> None:
        self._behaviour = os.path.basename(settings.model)
        if self._behaviour == "unavailable":
            raise Unavailable("stand-in is not installed here")

    def score(self, sets: list[CandidateSet]) -> list[list[float]]:
        print("a library's own words")
        os.write(1, b"and those of its C code\n")
        if self._behaviour == "crash":
            os._exit(7)
        if self._behaviour == "sleep":
            time.sleep(60)
        if self._behaviour == "raise":
            raise RuntimeError("first line\nthe reason")
        if self._behaviour == "forget":
            return []
        return [[self._score(document["text"]) for document in one["documents"]] for one in sets]

    def _score(self, text: str) -> float:
        return 0.25 if self._behaviour == "wrong" else len(text) / 1e6
