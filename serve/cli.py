"""`shardrank serve` and `shardrank new-key`."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from shardrank.actors.model.checkpoint import resolve_checkpoint
from shardrank.options import built, built_here, with_options
from shardrank.serve.gate.keys import (
    KEYS_VARIABLE,
    ApiKeys,
    check_exposed,
    environment_keys,
    hash_key,
    new_key,
)
from shardrank.serve.server import check_port, run_server
from shardrank.serve.settings import ENDPOINT, Limits, ServeSettings


def new_key_command(
    name: Annotated[str, typer.Argument(help="Whose key it is")],
) -> None:
    """Make an API key: it is shown once, its hash goes into the keys file."""
    key = new_key()
    print(key)
    print(f'\n# for the keys file:\n[keys.{name}]\nsha256 = "{hash_key(key)}"', file=sys.stderr)


@with_options(ENDPOINT)
def serve_command(
    host: Annotated[
        str, typer.Option(help="Another one than loopback needs API keys")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 8000,
    num_replicas: Annotated[
        int | None, typer.Option(min=1, help="Default: one a GPU, or one on CPU")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join")] = None,
    **given: Any,
) -> None:
    """Answer Cohere's, Jina's, vLLM's, TEI's, Voyage's and others' rerank clients over HTTP."""
    try:
        settings = _settings(given)
        keys = ApiKeys.of(settings.keys_file, settings.keys)
        check_exposed(host, keys)
        if address is None:  # a cluster's nodes may have another file system
            check_port(host, port)
            resolve_checkpoint(settings.reranker, weights=False)
        settings = replace(settings, is_local=keys.is_open)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    run_server(settings, host, port, num_replicas, address)


def _settings(given: dict[str, Any]) -> ServeSettings:
    """Raises ValueError. Without a model, the demo's."""
    if not given["model"]:
        served_name = given["served_name"] or "shardrank-demo"
        given = given | {"model": _demo_model(), "served_name": served_name}
    if given["keys_file"]:
        given = given | {"keys_file": os.path.abspath(given["keys_file"])}
    keys = environment_keys(os.environ.get(KEYS_VARIABLE))
    limits = built(Limits, given)  # first, whose rules are stricter than the engine's
    return built_here(ServeSettings, given, limits=limits, keys=keys)


def _demo_model() -> str:
    directory = Path(__file__).resolve().parents[1] / "demo" / "model"
    if not directory.is_dir():
        raise ValueError("--model is missing, and the demo's model is not beside this package")
    return str(directory)
