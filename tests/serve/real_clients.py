"""Drives clients whose pins conflict with ours, as published, at a server of the demo model.

    python -m tests.serve.real_clients [--folder DIR] [NAME ...]

Each gets an environment of its own in a temporary folder (or DIR, where it is kept), made with
venv and pip or with npm; so minutes, a network, and no part of `make test`. Prints a table; the
exit code is 1 where a call failed. What is no package of its own (RAGFlow, Dify, rankify, Weaviate)
is sent by test_dialects as its source sends it. Inside an environment this file runs itself with
--call.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

KEY = "sr-a-key-that-is-long-enough"
QUERY = "guitar"
DOCUMENTS = ["bicycle", "guitar", "banana", "🎸"]
MODEL = "shardrank-demo"
Ranking = list[tuple[int, float]]
ROOT = Path(__file__).resolve().parents[2]


def as_ranking(results: list[Any], score: str = "relevance_score") -> Ranking:
    return [(one["index"], one[score]) for one in results]


def by_text(texts: list[str], scores: list[float]) -> Ranking:
    return [(DOCUMENTS.index(text), score) for text, score in zip(texts, scores, strict=True)]


def from_logits(ranking: Ranking) -> Ranking:
    return [(index, 1 / (1 + exp(-logit))) for index, logit in ranking]


# Each call is one function of the server's address, in the environment of its packages. It returns
# the ranking that its client saw, which must be the server's own, or None.


def openai_model(url: str) -> None:
    from openai import OpenAI

    client = OpenAI(api_key=KEY, base_url=f"{url}/v1")
    assert client.models.retrieve(MODEL).id == MODEL
    assert [each.id for each in client.models.list()] == [MODEL]


def infinity(url: str) -> Ranking:
    from infinity_client import AuthenticatedClient
    from infinity_client.api.default import rerank
    from infinity_client.models import RerankInput

    client = AuthenticatedClient(base_url=url, token=KEY, raise_on_unexpected_status=True)
    answer = rerank.sync(client=client, body=RerankInput(query=QUERY, documents=DOCUMENTS))
    return [(one.index, one.relevance_score) for one in answer.results]


def infinity_models(url: str) -> None:
    from infinity_client import AuthenticatedClient
    from infinity_client.api.default import models

    for base in (url, f"{url}/infinity"):
        client = AuthenticatedClient(base_url=base, token=KEY, raise_on_unexpected_status=True)
        assert [each.id for each in models.sync(client=client).data] == [MODEL]


def xinference(url: str) -> Ranking:
    from xinference_client.client.restful.restful_client import Client, RESTfulRerankModelHandle

    handle = Client(base_url=url, api_key=KEY).get_model(MODEL)
    assert isinstance(handle, RESTfulRerankModelHandle)
    results = handle.rerank(DOCUMENTS, QUERY, return_documents=True)["results"]
    assert all(one["document"]["text"] == DOCUMENTS[one["index"]] for one in results)
    return as_ranking(results)


def haystack(url: str) -> Ranking:
    from haystack import Document
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.nvidia import NvidiaRanker

    key = Secret.from_token(KEY)
    ranker = NvidiaRanker(model=MODEL, api_url=f"{url}/v1", api_key=key, top_k=4, truncate="END")
    kept = ranker.run(QUERY, [Document(content=text) for text in DOCUMENTS])["documents"]
    return from_logits(by_text([each.content for each in kept], [each.score for each in kept]))


def langchain(url: str) -> Ranking:
    from langchain_core.documents import Document
    from langchain_nvidia_ai_endpoints import NVIDIARerank

    ranker = NVIDIARerank(base_url=f"{url}/v1", api_key=KEY, top_n=4)
    kept = ranker.compress_documents([Document(page_content=text) for text in DOCUMENTS], QUERY)
    scores = [each.metadata["relevance_score"] for each in kept]
    return from_logits(by_text([each.page_content for each in kept], scores))


def llama_index(url: str) -> Ranking:
    from llama_index.core.schema import NodeWithScore, TextNode
    from llama_index.postprocessor.nvidia_rerank import NVIDIARerank

    ranker = NVIDIARerank(base_url=f"{url}/v1", api_key=KEY, top_n=4)
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in DOCUMENTS]
    kept = ranker.postprocess_nodes(nodes, query_str=QUERY)
    return from_logits(by_text([each.node.text for each in kept], [each.score for each in kept]))


def aiperf(url: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        texts = [
            {"name": "query", "contents": [QUERY]},
            {"name": "passages", "contents": DOCUMENTS},
        ]
        data.write_text(json.dumps({"texts": texts}) + "\n", "utf-8")
        subprocess.run(
            [
                *(str(Path(sys.executable).parent / "aiperf"), "profile", "--model", MODEL),
                *("--endpoint-type", "nim-rankings", "--url", url, "--api-key", KEY),
                *("--tokenizer", str(ROOT / "demo" / "model"), "--no-server-metrics"),
                *("--request-count", "2", "--concurrency", "1"),
                *("--input-file", str(data), "--custom-dataset-type", "single_turn"),
                *("--artifact-dir", folder, "--ui", "none"),
            ],
            check=True,
            timeout=400,
            env=os.environ | {"HOME": folder},
        )
        (report,) = Path(folder).rglob("profile_export_aiperf.json")
        found = json.loads(report.read_text("utf-8"))
        assert found["request_count"]["avg"] == 2 and not found.get("error_request_count"), found


def pinecone(url: str) -> Ranking:
    from pinecone import Pinecone

    ask = Pinecone(api_key=KEY, host=url).inference.rerank
    results = ask(model=MODEL, query=QUERY, documents=DOCUMENTS).data
    assert all(one.document["text"] == DOCUMENTS[one.index] for one in results)
    return [(one.index, one.score) for one in results]


def mixedbread(url: str) -> Ranking:
    from mixedbread import Mixedbread

    client = Mixedbread(api_key=KEY, base_url=url)
    answer = client.rerank(model=MODEL, query=QUERY, input=DOCUMENTS, return_input=True)
    assert all(one.input == DOCUMENTS[one.index] for one in answer.data)
    return [(one.index, one.score) for one in answer.data]


def generated(url: str) -> Ranking:
    """A client that openapi-python-client makes of /openapi.json, without settings."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "openapi.json").write_bytes(sent(f"{url}/openapi.json"))
        tool = [str(Path(sys.executable).parent / "openapi-python-client"), "generate"]
        command = [*tool, "--path", "openapi.json", "--output-path", "made", "--meta", "none"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [*command, "--fail-on-warning"],
            cwd=folder,
            env=os.environ | {"PATH": path},
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        sys.path.insert(0, folder)
        from made import AuthenticatedClient  # type: ignore[import-not-found]
        from made.api.default import (  # type: ignore[import-not-found]
            rerank_rerank_post,
            v2_rerank_v2_rerank_post,
        )
        from made.models import RerankRequest  # type: ignore[import-not-found]

        client = AuthenticatedClient(base_url=url, token=KEY, raise_on_unexpected_status=True)
        body = RerankRequest(query=QUERY, documents=DOCUMENTS)
        for call in (rerank_rerank_post, v2_rerank_v2_rerank_post):
            results = call.sync(client=client, body=body).results
        return [(one.index, one.relevance_score) for one in results]


def sent(url: str, body: dict[str, Any] | None = None) -> bytes:
    from urllib.request import Request, urlopen

    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, headers), timeout=60) as answer:
        content: bytes = answer.read()
    return content


TOGETHER = """
import { createTogetherAI } from '@ai-sdk/togetherai';
import { rerank } from 'ai';
const [url, key, query, documents] = JSON.parse(process.argv[2]);
const model = createTogetherAI({ apiKey: key, baseURL: `${url}/v1` }).reranking('m');
const { ranking } = await rerank({ model, query, documents });
console.log(JSON.stringify(ranking.map((one) => [one.originalIndex, one.score])));
"""
VOYAGE = """
import { VoyageAIClient } from 'voyageai';
const [url, key, query, documents] = JSON.parse(process.argv[2]);
const client = new VoyageAIClient({ apiKey: key, environment: `${url}/v1` });
const { data } = await client.rerank({ model: 'm', query, documents, returnDocuments: true });
if (!data.every((one) => one.document === documents[one.index])) throw new Error('documents');
console.log(JSON.stringify(data.map((one) => [one.index, one.relevanceScore])));
"""


@dataclass(frozen=True)
class Client:
    """call: a function of this file, or a module for node; environment: of which packages."""

    call: Callable[[str], Ranking | None] | str
    environment: str


ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "openai": ("openai==3.57.0",),
    "infinity": ("infinity-client==0.0.78",),
    "xinference": ("xinference-client==4.1.0",),
    "haystack": ("nvidia-haystack==3.0.0",),
    "langchain": ("langchain-nvidia-ai-endpoints==1.5.0",),
    "llamaindex": ("llama-index-postprocessor-nvidia-rerank==0.7.0",),
    "aiperf": ("aiperf==0.13.0",),
    "pinecone": ("pinecone==10.2.0", "mixedbread==0.54.0"),
    "openapi": ("openapi-python-client==0.29.0",),
    "node": ("ai@6", "@ai-sdk/togetherai@2", "voyageai@0"),
}
CLIENTS = {
    "openai, models.retrieve": Client(openai_model, "openai"),
    "infinity_client, bare base": Client(infinity, "infinity"),
    "infinity_client, /infinity": Client(lambda url: infinity(f"{url}/infinity"), "infinity"),
    "infinity_client, models": Client(infinity_models, "infinity"),
    "xinference_client (and Dify's use)": Client(xinference, "xinference"),
    "haystack NvidiaRanker": Client(haystack, "haystack"),
    "LangChain NVIDIARerank": Client(langchain, "langchain"),
    "LlamaIndex NVIDIARerank": Client(llama_index, "llamaindex"),
    "AIPerf nim-rankings": Client(aiperf, "aiperf"),
    "Pinecone": Client(pinecone, "pinecone"),
    "Mixedbread": Client(mixedbread, "pinecone"),
    "openapi-python-client": Client(generated, "openapi"),
    "AI SDK, Together": Client(TOGETHER, "node"),
    "voyageai for node": Client(VOYAGE, "node"),
}


def environment(folder: Path, name: str) -> str:
    """The interpreter of an environment, which is made where it is not there yet."""
    packages, place = ENVIRONMENTS[name], folder / name
    is_made = place / ".made"
    if not is_made.exists():
        if name == "node":
            place.mkdir(exist_ok=True)
            (place / "package.json").write_text("{}", "utf-8")
            steps = [["npm", "install", "--no-audit", "--no-fund", *packages]]
        else:
            pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            steps = [[sys.executable, "-m", "venv", str(place)], [*pip, *packages]]
        for step in steps:
            subprocess.run(step, check=True, cwd=folder if name != "node" else place)
        is_made.touch()
    return "node" if name == "node" else str(place / "bin" / "python")


def run(name: str, url: str, folder: Path) -> Ranking | None:
    """What the client saw. Raises CalledProcessError with what it said."""
    client = CLIENTS[name]
    program = environment(folder, client.environment)
    if isinstance(client.call, str):
        module = folder / client.environment / "call.mjs"
        module.write_text(client.call, "utf-8")
        command = [program, str(module), json.dumps([url, KEY, QUERY, DOCUMENTS])]
    else:
        command = [program, __file__, "--call", name, url]
    quiet = {"NO_PROXY": "127.0.0.1", "DO_NOT_TRACK": "1", "HAYSTACK_TELEMETRY_ENABLED": "False"}
    done = subprocess.run(
        command, check=True, text=True, capture_output=True, env=os.environ | quiet, timeout=600
    )
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    return seen and [(index, score) for index, score in seen]


def is_same(seen: Ranking, expected: Ranking) -> bool:
    return [index for index, _ in seen] == [index for index, _ in expected] and all(
        abs(one - other) < 1e-4 for (_, one), (_, other) in zip(seen, expected, strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="keeps the environments")
    parser.add_argument("--call", nargs=2, metavar=("NAME", "URL"), help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", help="parts of clients' names; default: all")
    arguments = parser.parse_args()
    if arguments.call:
        call = CLIENTS[arguments.call[0]].call
        assert not isinstance(call, str)
        print("\n" + json.dumps(call(arguments.call[1])))
        return 0

    from shardrank.actors.config import RerankerConfig
    from shardrank.serve.gate.key_file import ApiKey, hash_key
    from shardrank.serve.gate.keys import ApiKeys
    from tests.support.serve_app import running

    config = RerankerConfig(model=str(ROOT / "demo" / "model"), device="cpu", num_threads=1)
    wanted = [
        name for name in CLIENTS if not arguments.names or any(n in name for n in arguments.names)
    ]
    num_failed = 0
    with (
        tempfile.TemporaryDirectory() as temporary,
        running(ApiKeys((ApiKey("a", hash_key(KEY)),)), reranker=config, served_name=MODEL) as url,
    ):
        folder = arguments.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        body = {"query": QUERY, "documents": DOCUMENTS}
        expected = as_ranking(json.loads(sent(f"{url}/v2/rerank", body))["results"])
        for name in wanted:
            started = time.monotonic()
            try:
                seen = run(name, url, folder)
                verdict = "ok" if seen is None or is_same(seen, expected) else f"saw {seen}"
            except subprocess.SubprocessError as error:
                said = getattr(error, "stderr", None) or str(error)
                verdict = "failed: " + " | ".join(said.strip().splitlines()[-3:])[-400:]
            num_failed += verdict != "ok"
            packages = " ".join(ENVIRONMENTS[CLIENTS[name].environment])
            seconds = time.monotonic() - started
            print(f"{name:36} {seconds:6.1f} s  {packages:48} {verdict}", flush=True)
    print(f"{len(wanted) - num_failed} of {len(wanted)} work")
    return int(num_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
