"""What one request wants scored, as candidate sets for the queue. Knows no HTTP and no queue."""

from dataclasses import dataclass

from shardrank.actors.config import QueryOptions
from shardrank.actors.data import CandidateSet, Content, PairScore
from shardrank.actors.errors import RerankError
from shardrank.serve.dialects.contents import Parsed

ParsedSide = Parsed | RerankError
Sides = list[Content | RerankError]


@dataclass(frozen=True, slots=True)
class Work:
    """documents[i] for queries[query_of[i]], in the answer's order.

    document_name: what the request calls documents[i], to be formatted with i. instruction: for
    queries and documents that have none of their own.
    """

    queries: list[ParsedSide]
    documents: list[ParsedSide]
    query_of: list[int]
    document_name: str
    instruction: str | None

    def contents(self) -> tuple[Sides, Sides]:
        """Of queries and of documents."""
        return [_content(side) for side in self.queries], [_content(s) for s in self.documents]

    def sets(
        self, queries: Sides, documents: Sides, options: QueryOptions
    ) -> tuple[list[CandidateSet], list[list[int]]]:
        """Documents with one query and instruction are one set; beside each its members' indices.

        queries, documents: as they are by now (fetched, cut).
        """
        groups: dict[tuple[int, str | None], list[int]] = {}
        for index, number in enumerate(self.query_of):
            groups.setdefault((number, self.instruction_of(index)), []).append(index)
        sets = [
            CandidateSet(
                queries[number],
                tuple(documents[i] for i in members),
                instruction,
                options,
                self.document_name,
                tuple(members),
            )
            for (number, instruction), members in groups.items()
        ]
        return sets, list(groups.values())

    def instruction_of(self, index: int) -> str | None:
        """A document's own, its query's, or the request's."""
        sides = self.documents[index], self.queries[self.query_of[index]]
        own = (side.instruction for side in sides if isinstance(side, Parsed))
        return next(filter(None, own), None) or self.instruction


def in_order(found: list[list[PairScore]], members: list[list[int]]) -> list[PairScore]:
    """The sets' scores as the answer's."""
    scores: dict[int, PairScore] = {}
    for indices, pairs in zip(members, found, strict=True):
        scores.update(zip(indices, pairs, strict=True))
    return [scores[index] for index in range(len(scores))]


def _content(side: ParsedSide) -> Content | RerankError:
    return side if isinstance(side, RerankError) else side.content
