"""`shardrank serve` and `shardrank new-key`."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from shardrank.actors.config import (
    DEFAULT_INSTRUCTION,
    DEFAULT_MAX_VISUAL_TOKENS,
    QueryOptions,
    RerankerConfig,
    VideoReader,
)
from shardrank.actors.fetch.web import WebMedia
from shardrank.actors.media.readers import missing_reader
from shardrank.actors.model.checkpoint import resolve_checkpoint
from shardrank.serve.gate.access import AccessLog
from shardrank.serve.gate.keys import (
    KEYS_VARIABLE,
    ApiKeys,
    check_exposed,
    environment_keys,
    hash_key,
    new_key,
)
from shardrank.serve.server import check_port, run_server
from shardrank.serve.settings import Limits, ServeSettings

_DEFAULTS = Limits()


def new_key_command(
    name: Annotated[str, typer.Argument(help="Whose key it is")],
) -> None:
    """Make an API key: it is shown once, its hash goes into the keys file."""
    key = new_key()
    print(key)
    print(f'\n# for the keys file:\n[keys.{name}]\nsha256 = "{hash_key(key)}"', file=sys.stderr)


def serve_command(
    model: Annotated[
        str | None, typer.Option(help="Checkpoint directory or hub name; default: the demo's")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model")] = None,
    host: Annotated[
        str, typer.Option(help="Another one than loopback needs API keys")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 8000,
    num_replicas: Annotated[
        int | None, typer.Option(min=1, help="Default: one a GPU, or one on CPU")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join")] = None,
    served_model_name: Annotated[
        str | None, typer.Option(help="What answers call the model")
    ] = None,
    strict_model: Annotated[
        bool, typer.Option(help="Requests that name another model are 404")
    ] = False,
    keys_file: Annotated[
        str | None, typer.Option(help=f"API keys (TOML); also {KEYS_VARIABLE} in the environment")
    ] = None,
    max_queue_s: Annotated[
        float, typer.Option(help="Who would wait longer is told to come back (429)")
    ] = 5.0,
    web_media: Annotated[bool, typer.Option(help="Fetch media from public http(s) URLs")] = True,
    allow_network: Annotated[
        list[str] | None, typer.Option(help="A network (CIDR) that may be fetched from too")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Pages of this origin (or *) may call from a browser")
    ] = None,
    instruction: Annotated[
        str, typer.Option(help="For requests that have none of their own")
    ] = DEFAULT_INSTRUCTION,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a pair")] = None,
    max_visual_tokens: Annotated[
        int,
        typer.Option(help="Of a pair, which no truncation cuts: one that has more is an error"),
    ] = DEFAULT_MAX_VISUAL_TOKENS,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="auto: bfloat16 on CUDA, else float32"),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    special_tokens: Annotated[
        Literal["neutralize", "official"],
        typer.Option(help="Special tokens typed in a text: plain characters, or acting"),
    ] = "neutralize",
    empty: Annotated[
        Literal["error", "official"],
        typer.Option(help="A query or document that says nothing: an error, or NULL scored"),
    ] = "error",
    image_depth: Annotated[
        Literal["scale", "official"],
        typer.Option(help="Grey images of over 8 bits: scaled by their range, or clipped at 255"),
    ] = "scale",
    video_reader: Annotated[
        VideoReader,
        typer.Option(
            help="decord: the official scorer's own reader and frames, from an old FFmpeg; "
            "for callers who are trusted"
        ),
    ] = "pyav",
    max_batch_tokens: Annotated[int | None, typer.Option(help="Tokens of one forward")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of a replica")] = None,
    compile: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="torch.compile; default: on CUDA"),
    ] = None,
    batch_invariant: Annotated[
        bool,
        typer.Option(
            "--batch-invariant",
            help="Score each pair alone: the same bits whatever rides along, and slower",
        ),
    ] = False,
    max_body_bytes: Annotated[int, typer.Option()] = _DEFAULTS.max_body_bytes,
    max_documents: Annotated[int, typer.Option(help="Of a request")] = _DEFAULTS.max_documents,
    max_image_pixels: Annotated[int, typer.Option()] = _DEFAULTS.max_image_pixels,
    max_video_s: Annotated[float, typer.Option()] = _DEFAULTS.max_video_s,
    timeout_s: Annotated[float, typer.Option(help="Of a request")] = _DEFAULTS.timeout_s,
    price_per_million_tokens: Annotated[
        float | None, typer.Option(help="To state a request's cost in its answer")
    ] = None,
    access_log: Annotated[
        AccessLog, typer.Option(help="A line a request on stdout, as text or JSON")
    ] = "lines",
) -> None:
    """Answer Cohere's, Jina's, vLLM's, TEI's, Voyage's and others' rerank clients over HTTP."""
    try:
        if video_reader != "pyav" and (lacking := missing_reader(video_reader)):
            raise ValueError(lacking)
        limits = Limits(
            max_body_bytes=max_body_bytes,
            max_documents=max_documents,
            max_image_pixels=max_image_pixels,
            max_video_s=max_video_s,
            timeout_s=timeout_s,
        )
        settings = ServeSettings(
            reranker=RerankerConfig(
                model=model or _demo_model(),
                revision=revision,
                device=device,
                dtype=dtype,
                instruction=instruction,
                options=QueryOptions(max_length=max_length),
                special_tokens=special_tokens,
                empty=empty,
                image_depth=image_depth,
                max_batch_tokens=max_batch_tokens,
                num_threads=threads,
                compile=compile,
                batch_invariant=batch_invariant,
                video_reader=video_reader,
                max_visual_tokens=max_visual_tokens,
            ),
            served_name=served_model_name or (None if model else "shardrank-demo"),
            is_strict_model=strict_model,
            limits=limits,
            web=WebMedia(allowed_networks=tuple(allow_network or ())) if web_media else None,
            keys_file=keys_file and os.path.abspath(keys_file),
            keys=environment_keys(os.environ.get(KEYS_VARIABLE)),
            max_queue_s=max_queue_s,
            price_per_million_tokens=price_per_million_tokens,
            cors_origins=tuple(cors_origin or ()),
            access_log=access_log,
        )
        keys = ApiKeys.of(settings.keys_file, settings.keys)
        check_exposed(host, keys)
        if address is None:  # a cluster's nodes may have another file system
            check_port(host, port)
            resolve_checkpoint(settings.reranker.model, revision, weights=False)
        settings = replace(settings, is_local=keys.is_open)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    run_server(settings, host, port, num_replicas, address)


def _demo_model() -> str:
    directory = Path(__file__).resolve().parents[1] / "demo" / "model"
    if not directory.is_dir():
        raise ValueError("--model is missing, and the demo's model is not beside this package")
    return str(directory)
