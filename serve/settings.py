"""Everything that the endpoint's command says, checked once. Plain data: it travels to replicas."""

from dataclasses import dataclass, field, fields, replace
from typing import get_args

from shardrank.actors.config import RerankerConfig
from shardrank.actors.fetch.web import WebMedia
from shardrank.serve.gate.access import AccessLog


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
    max_video_s: float = 3_600.0
    max_text_chars: int = 1_000_000  # of one text
    timeout_s: float = 300.0

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) >= 1:
                raise ValueError(f"{each.name} must be at least 1, got {getattr(self, each.name)}")


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """keys_file, keys_text: see serve/gate/keys.py; neither: open, for loopback only.

    served_name: what answers call the model (None: the end of its path). is_strict_model: other
    names in a request are 404. max_queue_s: who would wait longer is told to come back.
    price_per_million_tokens: None states no cost. num_preparing: threads that decode and tokenise.
    """

    reranker: RerankerConfig
    served_name: str | None = None
    is_strict_model: bool = False
    limits: Limits = Limits()
    web: WebMedia | None = field(default_factory=WebMedia)
    keys_file: str | None = None
    keys_text: str | None = field(default=None, repr=False)
    max_queue_s: float = 5.0
    num_preparing: int = 2
    num_fetching: int = 16
    price_per_million_tokens: float | None = None
    access_log: AccessLog = "lines"

    def __post_init__(self) -> None:
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
    def model_name(self) -> str:
        return self.served_name or self.reranker.model.rstrip("/").rpartition("/")[2]
