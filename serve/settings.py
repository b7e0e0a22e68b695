"""Everything that the endpoint's command says, checked once. Plain data: it travels to replicas."""

import re
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

from shardrank.actors.config import (
    EmbeddingOptions,
    RerankerConfig,
    Setting,
    check_settings,
)
from shardrank.actors.fetch.web import WebMedia
from shardrank.options import options_of
from shardrank.serve.console import AccessLog
from shardrank.serve.gate.key_file import KEYS_VARIABLE, ApiKey

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for, checked before the work that it bounds.

    Raises ValueError on a value below one.
    """

    max_body_bytes: Annotated[int, Setting("Of a request")] = 64 << 20
    max_documents: Annotated[int, Setting("Of a request")] = 10_000
    max_media: Annotated[int, Setting("Images, frames and videos of a request")] = 1_000
    max_media_bytes: Annotated[int, Setting("Of a request, fetched ones included")] = 256 << 20
    max_image_pixels: Annotated[int, Setting("Of one image as it is encoded")] = 64_000_000
    max_request_pixels: Annotated[
        int, Setting("Of a request's images and frames as they are encoded")
    ] = 2_000_000_000
    max_query_chars: Annotated[
        int, Setting("Of a request's queries, counted once for each document")
    ] = 100_000_000
    max_rank_fields: Annotated[int, Setting("Of a request")] = 100
    max_video_s: Annotated[float, Setting("Seconds of a video file")] = 3_600.0
    max_text_chars: Annotated[int, Setting("Characters of one text")] = 1_000_000
    timeout_s: Annotated[float, Setting("Of a request; fetching its media may take half of it")] = (
        300.0
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) >= 1:
                raise ValueError(f"{each.name} must be at least 1, got {getattr(self, each.name)}")


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """keys_file, keys: see serve/gate/key_file.py; neither: open, for loopback only. is_local: only
    who calls it by loopback's names is answered, so that no web page reaches it by a name of its
    own.

    served_name: None: the end of the model's path. embedder: beside the reranker; where it is the
    same model, no pair is scored. Raises ValueError on what is no origin.
    """

    reranker: RerankerConfig
    embedder: Annotated[
        str | None,
        Setting("Embedding model to serve vectors with: beside --model, or alone without it"),
    ] = None
    served_name: Annotated[
        str | None, Setting("What answers call the model", flag="--served-model-name")
    ] = None
    is_strict_model: Annotated[
        bool, Setting("Requests that name another model are 404", name="strict_model")
    ] = False
    limits: Limits = Limits()
    web: Annotated[
        WebMedia | None, Setting("Fetch media from public http(s) URLs", name="web_media")
    ] = field(default_factory=WebMedia)
    keys_file: Annotated[
        str | None, Setting(f"API keys (TOML); also {KEYS_VARIABLE} in the environment")
    ] = None
    keys: tuple[ApiKey, ...] = ()
    is_local: bool = False
    max_queue_s: Annotated[float, Setting("Who would wait longer is told to come back (429)")] = 5.0
    num_preparing: Annotated[int, Setting("Threads of a replica that decode and tokenise")] = 2
    num_fetching: Annotated[int, Setting("Threads of a replica that fetch media")] = 64
    price_per_million_tokens: Annotated[
        float | None, Setting("To state a request's cost in its answer")
    ] = None
    cors_origins: Annotated[
        tuple[str, ...],
        Setting("Pages of this origin (or *) may call from a browser", flag="--cors-origin"),
    ] = ()
    access_log: Annotated[AccessLog, Setting("A line a request on stdout, as text or JSON")] = (
        "lines"
    )

    def __post_init__(self) -> None:
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    "cors_origins must be origins as browsers send them (https://example.org, "
                    f"without a path or a slash at the end) or *, got {origin!r}"
                )
        check_settings(self, "access_log", "num_preparing", "num_fetching")

    @property
    def engine(self) -> RerankerConfig | None:
        """The reranker's configuration within the limits; None: there is none."""
        return None if self.embedder == self.reranker.model else self._within_limits(self.reranker)

    @property
    def embedding_engine(self) -> RerankerConfig | None:
        """The embedder's, with the reranker's options where they are no matter of the model."""
        if self.embedder is None:
            return None
        own: dict[str, Any] = {"embedding": EmbeddingOptions()}
        if self.engine is not None:
            own |= {"model": self.embedder, "revision": None, "adapter": None, "instruction": None}
        return self._within_limits(replace(self.reranker, **own))

    def _within_limits(self, config: RerankerConfig) -> RerankerConfig:
        """Strangers name no files of ours."""
        return replace(
            config,
            max_decoded_pixels=self.limits.max_image_pixels,
            max_text_chars=self.limits.max_text_chars,
            max_video_s=self.limits.max_video_s,
            local_media=False,
            web_media=None,  # the service fetches them itself
        )

    @property
    def models(self) -> dict[str, str]:
        """What each model that is served does, by the name that answers have for it."""
        models = {} if self.engine is None else {self.model_name: "rerank"}
        return models | ({} if self.embedder is None else {self.embedder_name: "embed"})

    @property
    def model_name(self) -> str:
        return self.served_name or _end_of(self.reranker.model)

    @property
    def embedder_name(self) -> str:
        if self.engine is None:
            return self.model_name
        name = _end_of(self.embedder or "")
        return f"{name}-embedding" if name == self.model_name else name


def _end_of(model: str) -> str:
    """The end of a model's path."""
    return model.rstrip("/").rpartition("/")[2]


ENDPOINT = options_of(ServeSettings, "media_root", "local_media", "max_decoded_pixels")
"""Its options: all of the engine, but for files of ours, which strangers do not name, and for what
max_image_pixels says.
"""
LIMITS = options_of(Limits)
