"""Everything that the endpoint's command says, checked once. Plain data: it travels to replicas."""

import re
from dataclasses import dataclass, field, fields, replace
from typing import get_args

from shardrank.actors.config import RerankerConfig
from shardrank.actors.fetch.web import WebMedia
from shardrank.serve.gate.access import AccessLog
from shardrank.serve.gate.keys import ApiKey

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for, checked before the work that it bounds.

    Raises ValueError on a value below one.
    """

    max_body_bytes: int = 64 << 20
    max_documents: int = 10_000
    max_media: int = 1_000  # images, frames and videos of a request
    max_media_bytes: int = 256 << 20  # of a request, fetched ones included
    max_image_pixels: int = 64_000_000
    max_request_pixels: int = 2_000_000_000  # images and frames of a request, as encoded
    max_query_chars: int = 100_000_000  # of a request's queries, counted once a document
    max_rank_fields: int = 100
    max_video_s: float = 3_600.0
    max_text_chars: int = 1_000_000  # of one text
    timeout_s: float = 300.0  # of which fetching media may take half

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) >= 1:
                raise ValueError(f"{each.name} must be at least 1, got {getattr(self, each.name)}")


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """keys_file, keys: see serve/gate/keys.py; neither: open, for loopback only. is_local: only who
    calls it by loopback's names is answered, so that no web page reaches it by a name of its own.

    served_name: what answers call the model (None: the end of its path). is_strict_model: other
    names in a request are 404. max_queue_s: who would wait longer is told to come back.
    price_per_million_tokens: None states no cost. num_preparing: threads that decode and tokenise.
    cors_origins: pages of these may call from a browser. Raises ValueError on what is no origin.
    """

    reranker: RerankerConfig
    served_name: str | None = None
    is_strict_model: bool = False
    limits: Limits = Limits()
    web: WebMedia | None = field(default_factory=WebMedia)
    keys_file: str | None = None
    keys: tuple[ApiKey, ...] = ()
    is_local: bool = False
    max_queue_s: float = 5.0
    num_preparing: int = 2
    num_fetching: int = 64
    price_per_million_tokens: float | None = None
    cors_origins: tuple[str, ...] = ()
    access_log: AccessLog = "lines"

    def __post_init__(self) -> None:
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    "cors_origins must be origins as browsers send them (https://example.org, "
                    f"without a path or a slash at the end) or *, got {origin!r}"
                )
        if self.access_log not in get_args(AccessLog):
            kinds = ", ".join(get_args(AccessLog))
            raise ValueError(f"access_log must be one of {kinds}, got {self.access_log!r}")

    @property
    def engine(self) -> RerankerConfig:
        """The reranker's configuration within the limits: strangers name no files of ours."""
        return replace(
            self.reranker,
            max_decoded_pixels=self.limits.max_image_pixels,
            max_text_chars=self.limits.max_text_chars,
            max_video_s=self.limits.max_video_s,
            local_media=False,
        )

    @property
    def names(self) -> set[str]:
        """Those of the model, served and own."""
        return {self.model_name, self.reranker.model}

    @property
    def model_name(self) -> str:
        return self.served_name or self.reranker.model.rstrip("/").rpartition("/")[2]
