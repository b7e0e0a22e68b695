"""What the batch side promises about strangers' checkpoints, media and our users' secrets."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import fs

from shardrank.actors.config import RerankerConfig
from shardrank.actors.fetch.web import WebMedia
from shardrank.actors.preprocessor import Preprocessor
from shardrank.actors.reranker import Reranker
from shardrank.actors.scorer import Scorer
from shardrank.jobs.run.engine import Engine
from tests.support.job_cases import (
    candidate,
    image,
    plan_of,
    run_inline,
    score_rows,
    text,
    write_sets,
)
from tests.support.web_site import answering, ok, serving

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "tests" / "golden" / "tiny"

REAL = Engine(Preprocessor, Scorer)

EVIL = "open({marker!r}, 'w').close()\nclass Evil: pass\n"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    shutil.copytree(TINY, tmp_path / "model")
    return tmp_path / "model"


def test_a_checkpoint_without_safetensors_is_refused_whatever_else_it_has(checkpoint: Path) -> None:
    for weights in checkpoint.glob("*.safetensors"):
        weights.unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch evil'\ntR.")
    with pytest.raises(ValueError, match="safetensors"):
        Reranker(str(checkpoint), device="cpu", num_threads=1)


def test_no_code_of_a_checkpoint_is_run(checkpoint: Path, tmp_path: Path) -> None:
    marker = tmp_path / "evil-was-here"
    (checkpoint / "evil.py").write_text(EVIL.format(marker=str(marker)))
    path = checkpoint / "config.json"
    classes = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor")
    config = json.loads(path.read_text()) | {"auto_map": dict.fromkeys(classes, "evil.Evil")}
    path.write_text(json.dumps(config))
    tokenizer = checkpoint / "tokenizer_config.json"
    known = json.loads(tokenizer.read_text()) if tokenizer.is_file() else {}
    tokenizer.write_text(json.dumps(known | {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    scores = Reranker(str(checkpoint), device="cpu", num_threads=1).score("q", ["a", "b"])
    assert scores == pytest.approx(
        Reranker(str(TINY), device="cpu", num_threads=1).score("q", ["a", "b"])
    )
    assert not marker.exists()


def test_nothing_that_a_user_brings_is_unpickled() -> None:
    """Pickles go between our own processes, in these modules, and nowhere else."""
    found = set()
    for layer in ("actors", "jobs", "serve"):
        for path in (ROOT / layer).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    name = f"{node.value.id}.{node.attr}"
                    if name in ("pickle.loads", "pickle.load", "torch.load", "np.load"):
                        found.add((path.relative_to(ROOT).as_posix(), name))
    ours = {
        ("jobs/run/engine.py", "pickle.loads"),
        ("jobs/run/preparing.py", "pickle.loads"),
        ("jobs/run/scoring.py", "pickle.loads"),
    }
    assert found == ours


# Media of strangers


def test_http_media_are_refused_unless_allowed_and_then_from_public_addresses_alone(
    tmp_path: Path,
) -> None:
    page = (ROOT / "tests" / "golden" / "media" / "fr0.png").read_bytes()
    with serving(answering(ok(page))) as site:
        url = f"http://127.0.0.1:{site.port}/page.png"
        places = {"http": url, "metadata": "http://169.254.169.254/latest/meta-data/"}
        candidates = [candidate(name, image(None, place)) for name, place in places.items()]
        sets = write_sets(
            tmp_path / "sets.parquet",
            [{"query_id": 1, "query": "q", "candidates": candidates}],
        )

        def codes(name: str, web: WebMedia | None) -> dict[str, str | None]:
            config = RerankerConfig(model=str(TINY), num_threads=1, web_media=web)
            run_inline(plan_of(sets), tmp_path / name, engine=REAL, config=config)
            return {row["doc_id"]: row["error_code"] for row in score_rows(tmp_path / name)}

        refused = {"http": "media_forbidden", "metadata": "media_forbidden"}
        assert codes("none", None) == codes("public", WebMedia()) == refused
        inside = WebMedia(allowed_networks=("127.0.0.0/8",))
        assert codes("inside", inside) == {"http": None, "metadata": "media_forbidden"}


def test_a_row_of_too_many_visual_tokens_is_its_own_error(tmp_path: Path) -> None:
    """One image whose row asks for more tokens than a pair may have, beside an honest one."""
    page = (ROOT / "tests" / "golden" / "media" / "sq_64x64.png").read_bytes()
    rows = {"query_id": 1, "query": "q", "candidates": [candidate("page", image(page))]}
    sets = write_sets(tmp_path / "sets.parquet", [rows | {"query_id": number} for number in (1, 2)])
    config = RerankerConfig(model=str(TINY), num_threads=1, max_visual_tokens=3)
    run_inline(plan_of(sets), tmp_path / "out", engine=REAL, config=config)
    codes = {row["error_code"] for row in score_rows(tmp_path / "out")}
    assert codes == {"too_many_visual_tokens"}


# Secrets


def test_credentials_in_a_uri_are_in_no_file_and_on_no_screen(
    tmp_path: Path, s3_endpoint: str, ray_address: str
) -> None:
    secret = "wJalrXUtnFEMI7MDENGbPxRfiCY"
    address = s3_endpoint.removeprefix("http://")
    query = f"?scheme=http&endpoint_override={address}&region=us-east-1"
    sets = write_sets(
        tmp_path / "sets.parquet",
        [{"query_id": 1, "query": "q", "candidates": [candidate("d", text("a"))]}],
    )
    bucket = fs.S3FileSystem(endpoint_override=s3_endpoint, region="us-east-1")
    with bucket.open_output_stream("bucket/secrets/sets.parquet") as stream:
        stream.write(Path(sets).read_bytes())
    for name, code in (("secrets/sets.parquet", 0), ("secrets/nothing.parquet", 2)):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "shardrank.cli", "rerank"),
                f"s3://AKIDEXAMPLE:{secret}@bucket/{name}{query}",
                f"--output=s3://AKIDEXAMPLE:{secret}@bucket/secrets/out-{code}{query}",
                *(f"--model={TINY}", "--threads=1", f"--address={ray_address}"),
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        assert secret not in done.stdout + done.stderr
    files = bucket.get_file_info(fs.FileSelector("bucket/secrets/out-0", recursive=True))
    contents = [bucket.open_input_stream(f.path).read() for f in files if f.is_file]
    assert len(contents) == 3 and not any(secret.encode() in each for each in contents)
    manifest = json.loads(bucket.open_input_stream("bucket/secrets/out-0/manifest.json").read())
    assert manifest["input"]["input"].startswith("s3://***@bucket/secrets/sets.parquet?scheme=")
    assert manifest["command"]["arguments"][0] == "rerank"
