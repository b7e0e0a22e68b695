"""`shardrank serve` and `shardrank new-key`."""

import os
import re
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal

import typer

from shardrank.actors.config import (
    DEFAULT_INSTRUCTION,
    QueryOptions,
    RerankerConfig,
    VideoReader,
)
from shardrank.actors.fetch.web import WebMedia
from shardrank.actors.media.readers import missing_reader
from shardrank.actors.model.checkpoint import resolve_checkpoint
from shardrank.serve.gate.keys import ApiKeys, check_exposed, hash_key, new_key
from shardrank.serve.proxy import CALLBACK, CALLBACK_VARIABLE
from shardrank.serve.settings import Limits, ServeSettings

KEYS_VARIABLE = "SHARDRANK_API_KEYS"
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
    instruction: Annotated[
        str, typer.Option(help="For requests that have none of their own")
    ] = DEFAULT_INSTRUCTION,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a pair")] = None,
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
    max_body_bytes: Annotated[int, typer.Option()] = _DEFAULTS.max_body_bytes,
    max_documents: Annotated[int, typer.Option(help="Of a request")] = _DEFAULTS.max_documents,
    max_image_pixels: Annotated[int, typer.Option()] = _DEFAULTS.max_image_pixels,
    max_video_s: Annotated[float, typer.Option()] = _DEFAULTS.max_video_s,
    timeout_s: Annotated[float, typer.Option(help="Of a request")] = _DEFAULTS.timeout_s,
    price_per_million_tokens: Annotated[
        float | None, typer.Option(help="To state a request's cost in its answer")
    ] = None,
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
                video_reader=video_reader,
            ),
            served_name=served_model_name or (None if model else "shardrank-demo"),
            is_strict_model=strict_model,
            limits=limits,
            web=WebMedia(allowed_networks=tuple(allow_network or ())) if web_media else None,
            keys_file=keys_file and os.path.abspath(keys_file),
            keys_text=os.environ.get(KEYS_VARIABLE),
            max_queue_s=max_queue_s,
            price_per_million_tokens=price_per_million_tokens,
        )
        if address is None:  # a cluster's nodes may have another file system
            resolve_checkpoint(settings.reranker.model, revision, weights=False)
        check_exposed(host, ApiKeys.load(settings.keys_file, settings.keys_text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    _run(settings, host, port, num_replicas, address)


def _demo_model() -> str:
    directory = Path(__file__).resolve().parents[1] / "demo" / "model"
    if not directory.is_dir():
        raise ValueError("--model is missing, and the demo's model is not beside this package")
    return str(directory)


def _run(
    settings: ServeSettings, host: str, port: int, num_replicas: int | None, address: str | None
) -> None:
    """Until it is interrupted."""
    os.environ.setdefault(CALLBACK_VARIABLE, CALLBACK)  # before Ray starts
    from shardrank.cluster import start_ray

    # isort: split
    import ray
    from ray import serve

    from shardrank.serve.deployment import APP_NAME, application, metrics_directory

    if address is None:
        shutil.rmtree(metrics_directory(), ignore_errors=True)  # counters of an earlier server
    start_ray(address)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # Ray has put its own in their place
        signal.signal(number, lambda *_: stopped.set())
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        uses_gpu = settings.reranker.device != "cpu" and gpus > 0
        serve.start(
            http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING"}
        )
        print(f"loading {settings.reranker.model} ...", file=sys.stderr)
        serve.run(
            application(
                settings, num_replicas or (gpus if uses_gpu else 1), num_gpus=1 if uses_gpu else 0
            ),
            name=APP_NAME,
        )
        where = f"http://{host}:{port}"
        print(f"serving {settings.model_name} at {where} (API: {where}/docs)", file=sys.stderr)
        stopped.wait()
    except RuntimeError as error:
        print(f"error: the endpoint did not start: {_cause() or error}", file=sys.stderr)
        raise typer.Exit(1) from error
    finally:
        print("stopping; requests in work are finished first", file=sys.stderr)
        serve.shutdown()
        ray.shutdown()


def _cause() -> str:
    """What a replica said last, without its traceback."""
    from ray import serve

    deployments = [
        deployment
        for application in serve.status().applications.values()
        for deployment in application.deployments.values()
    ]
    lines = [line for each in deployments for line in each.message.strip().splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or [""])[-1]
