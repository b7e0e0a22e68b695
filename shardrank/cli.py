"""The command line: `shardrank rerank` and its siblings.

Exit codes: 0 done (rows may have errors, the summary counts them), 1 failed, 2 the command is
wrong, 130 interrupted.
"""

import json
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from shardrank.actors.config import EmbeddingOptions, RerankerConfig
from shardrank.jobs.command import how_to_go_on
from shardrank.jobs.errors import JobError, UsageError
from shardrank.jobs.evaluate.cli import evaluate, print_comparison, roots_of
from shardrank.jobs.evaluate.measures import compare, load_scores, parse_measure
from shardrank.jobs.evaluate.qrels import load_qrels
from shardrank.jobs.inputs.forms import PRESETS, InputOptions
from shardrank.jobs.outputs.budget import MaxErrors
from shardrank.jobs.outputs.status import read_status
from shardrank.jobs.outputs.verify import verify_output
from shardrank.jobs.rerank import JobOptions
from shardrank.jobs.rerank import rerank as run_rerank
from shardrank.jobs.retrieve.cli import retrieve
from shardrank.jobs.run.engine import own_engine
from shardrank.jobs.run.rescore import parse_share, rescored
from shardrank.jobs.search import RERANKED, SearchOptions
from shardrank.jobs.search import search as run_search
from shardrank.jobs.secrets import printable, redacted
from shardrank.jobs.submit.cli import app as submit_app
from shardrank.jobs.submit.variables import given, note_submitter
from shardrank.jobs.units.plan import DEFAULT_UNIT_PAIRS
from shardrank.options import built_here, options_of, with_options
from shardrank.serve.cli import new_key_command, serve_command
from shardrank.summary import print_search, print_status, print_summary, status_values
from shardrank.watching import watch

app = typer.Typer(
    name="shardrank",
    help="Rerank and embed large corpora with Qwen3-VL on Ray.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


app.command()(evaluate)
app.command("retrieve")(retrieve)
app.command("serve")(serve_command)
app.command("new-key")(new_key_command)
app.add_typer(submit_app, name="submit")


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def bench(context: typer.Context) -> None:
    """Time this engine beside every other one that is installed, from a checkout; `bench --help`
    says how.
    """
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / "bench" / "peers" / "ours.py").is_file():
        raise UsageError(
            "the benchmark is not part of the installed package: "
            "run `python -m bench` in a checkout of ShardRank"
        )
    sys.path.insert(0, str(checkout))
    raise typer.Exit(import_module("bench.__main__").main(context.args))


@app.command()
@with_options(options_of(RerankerConfig))
def rerank(
    context: typer.Context,
    input: Annotated[
        str | None,
        typer.Argument(
            help="Candidate sets, pairs, a run, or a data set's directory: "
            "a file, a directory or a glob, local, s3:// or gs://"
        ),
    ] = None,
    output: Annotated[str | None, typer.Option(help="Directory of the results")] = None,
    run: Annotated[
        str | None,
        typer.Option(
            help="First stage's run: text of 3 to 7 columns (TREC), Parquet or JSON lines"
        ),
    ] = None,
    queries: Annotated[str | None, typer.Option(help="Queries table, for a run")] = None,
    corpus: Annotated[str | None, typer.Option(help="Corpus table, for a run")] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"A data set's own names: {', '.join(PRESETS)}")
    ] = None,
    map: Annotated[
        list[str] | None,
        typer.Option(
            help="TABLE.COLUMN=NAME: where another name holds a column; NAME may be a path, as in "
            "corpus.doc=content.text, and COLUMN a candidate's, as in input.candidates.doc_id=sku"
        ),
    ] = None,
    rankings: Annotated[bool, typer.Option(help="Also one nested row a query")] = False,
    trec_run: Annotated[bool, typer.Option(help="Also run.trec, a TREC run")] = False,
    qrels: Annotated[str | None, typer.Option(help="Judgements: measure the result")] = None,
    measure: Annotated[
        list[str] | None, typer.Option(help="With --qrels: a measure such as nDCG@10")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join")] = None,
    num_actors: Annotated[
        int | None, typer.Option(help="Scoring actors; default: one a GPU, or one on CPU")
    ] = None,
    unit_pairs: Annotated[
        int, typer.Option(help="Pairs of a unit, which is written and resumed as a whole")
    ] = DEFAULT_UNIT_PAIRS,
    order: Annotated[
        Literal["auto", "query", "document"],
        typer.Option(
            help="What is scored together: a query's documents, or a document's queries, "
            "so that each page is read and encoded once; auto: as the corpus and the run suggest"
        ),
    ] = "auto",
    max_errors: Annotated[
        str | None,
        typer.Option(
            help="Rows with an error, as a number or a share, after which the job stops; "
            "default: 1% of the pairs, or 100 if that is more"
        ),
    ] = None,
    retry_errors: Annotated[
        list[str] | None,
        typer.Option(
            help="Score again the finished units with a row that failed of this error code, such "
            "as media_unreachable; `all`: of any"
        ),
    ] = None,
    add_new: Annotated[
        bool,
        typer.Option(
            "--add-new",
            help="The input grew: score what is new, and rank its queries anew",
        ),
    ] = False,
    pair_timeout_s: Annotated[
        float,
        typer.Option(
            help="Seconds that reading and decoding one pair may take, and a GPU for one forward"
        ),
    ] = 300.0,
    gpu_hour_price: Annotated[
        float | None, typer.Option(help="Of one GPU-hour, to state the cost")
    ] = None,
    **engine: Any,
) -> None:
    """Score every pair of INPUT and write the scores to --output.

    The same command again goes on where it was stopped.
    """
    _check_given(output, engine)
    options = JobOptions(
        output=output or "",
        input=InputOptions(
            input,
            run,
            queries,
            corpus,
            preset,
            tuple(map or ()),
            max_pdf_pages=engine["max_pdf_pages"],
        ),
        address=address,
        num_actors=num_actors,
        unit_pairs=unit_pairs,
        order=order,
        with_rankings=rankings,
        with_trec_run=trec_run,
        qrels=qrels,
        measures=tuple(measure or ()),
        gpu_hour_price=gpu_hour_price,
        max_errors=MaxErrors.parse(max_errors) if max_errors is not None else MaxErrors(),
        pair_timeout_s=pair_timeout_s,
        retry_errors=tuple(retry_errors or ()),
        add_new=add_new,
        command=tuple(context.obj or ()),
    )
    print_summary(run_rerank(options, _config(engine)), Console(markup=False))


@app.command()
@with_options(options_of(RerankerConfig))
def embed(
    context: typer.Context,
    input: Annotated[
        str | None,
        typer.Argument(
            help="The corpus, or queries: a file, a directory or a glob, local, s3:// or gs://; or "
            "a data set's directory"
        ),
    ] = None,
    output: Annotated[str | None, typer.Option(help="Directory of the results")] = None,
    role: Annotated[
        Literal["document", "query"],
        typer.Option("--as", help="What INPUT has: a query's prompt may be another"),
    ] = "document",
    dimensions: Annotated[
        int | None, typer.Option(help="The vector's first so many, a unit vector again")
    ] = None,
    precision: Annotated[
        Literal["float32", "float16"], typer.Option(help="Of the files' vectors")
    ] = "float32",
    preset: Annotated[
        str | None, typer.Option(help=f"A data set's own names: {', '.join(PRESETS)}")
    ] = None,
    map: Annotated[
        list[str] | None,
        typer.Option(help="TABLE.COLUMN=NAME: where another name holds a column"),
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join")] = None,
    num_actors: Annotated[
        int | None, typer.Option(help="Embedding actors; default: one a GPU, or one on CPU")
    ] = None,
    unit_texts: Annotated[
        int, typer.Option(help="Texts of a unit, which is written and resumed as a whole")
    ] = DEFAULT_UNIT_PAIRS,
    max_errors: Annotated[
        str | None,
        typer.Option(
            help="Rows with an error, as a number or a share, after which the job stops; "
            "default: 1% of the texts, or 100 if that is more"
        ),
    ] = None,
    retry_errors: Annotated[
        list[str] | None,
        typer.Option(help="Embed again the finished units with a row of this error code; `all`"),
    ] = None,
    add_new: Annotated[
        bool, typer.Option("--add-new", help="The input grew: embed what is new")
    ] = False,
    pair_timeout_s: Annotated[
        float,
        typer.Option(
            help="Seconds that reading and decoding one text may take, and a GPU for one forward",
        ),
    ] = 300.0,
    gpu_hour_price: Annotated[
        float | None, typer.Option(help="Of one GPU-hour, to state the cost")
    ] = None,
    **engine: Any,
) -> None:
    """Make a vector of every text, image or video of INPUT and write them to --output.

    The same command again goes on where it was stopped.
    """
    _check_given(output, engine)
    try:
        embedding = EmbeddingOptions(role, dimensions, precision)
    except ValueError as error:
        raise UsageError(str(error)) from error
    options = JobOptions(
        output=output or "",
        input=InputOptions(
            input,
            preset=preset,
            maps=tuple(map or ()),
            embeds=role,
            max_pdf_pages=engine["max_pdf_pages"],
        ),
        address=address,
        num_actors=num_actors,
        unit_pairs=unit_texts,
        gpu_hour_price=gpu_hour_price,
        max_errors=MaxErrors.parse(max_errors) if max_errors is not None else MaxErrors(),
        pair_timeout_s=pair_timeout_s,
        retry_errors=tuple(retry_errors or ()),
        add_new=add_new,
        command=tuple(context.obj or ()),
    )
    config = replace(_config(engine), embedding=embedding)
    print_summary(run_rerank(options, config), Console(markup=False))


@app.command()
@with_options(options_of(RerankerConfig))
def search(
    context: typer.Context,
    queries: Annotated[str | None, typer.Option(help="Queries table")] = None,
    corpus: Annotated[str | None, typer.Option(help="Corpus table")] = None,
    embedder: Annotated[
        str | None, typer.Option(help="Embedding model that recalls; --model refines")
    ] = None,
    output: Annotated[str | None, typer.Option(help="Directory of all stages' results")] = None,
    top_k: Annotated[int, typer.Option(help="Documents of each query that are reranked")] = 100,
    vectors: Annotated[
        str | None,
        typer.Option(help="Where the corpus's vectors are kept, for other searches too"),
    ] = None,
    query_instruction: Annotated[
        str | None, typer.Option(help="The embedder's; --instruction is the reranker's")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"A data set's own names: {', '.join(PRESETS)}")
    ] = None,
    map: Annotated[
        list[str] | None,
        typer.Option(help="TABLE.COLUMN=NAME: where another name holds a column"),
    ] = None,
    qrels: Annotated[str | None, typer.Option(help="Judgements: measure both stages")] = None,
    measure: Annotated[
        list[str] | None, typer.Option(help="With --qrels: a measure such as nDCG@10")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join")] = None,
    num_actors: Annotated[
        int | None, typer.Option(help="Actors; default: one a GPU, or one on CPU")
    ] = None,
    max_errors: Annotated[
        str | None, typer.Option(help="Rows with an error, after which a stage stops")
    ] = None,
    retry_errors: Annotated[
        list[str] | None,
        typer.Option(help="Do the units of each stage again that have a row of this error code"),
    ] = None,
    **engine: Any,
) -> None:
    """Search both stages: --embedder recalls documents for every query, --model reranks them.

    The same command again goes on where it was stopped.
    """
    _check_given(output, engine)
    for name, value in (("queries", queries), ("corpus", corpus), ("embedder", embedder)):
        if value is None:
            raise UsageError(f"--{name} is missing")
    options = SearchOptions(
        queries or "",
        corpus or "",
        output or "",
        top_k=top_k,
        vectors=vectors,
        preset=preset,
        maps=tuple(map or ()),
        address=address,
        num_actors=num_actors,
        max_errors=MaxErrors.parse(max_errors) if max_errors is not None else MaxErrors(),
        retry_errors=tuple(retry_errors or ()),
        command=tuple(context.obj or ()),
    )
    measures = tuple(measure or ("nDCG@10", f"R@{top_k}"))
    judgements = None if qrels is None else load_qrels(qrels)
    for each in measures if judgements else ():
        parse_measure(each)
    reranker = _config(engine)
    own: dict[str, Any] = {"revision": None, "adapter": None, "instruction": query_instruction}
    media = replace(reranker.options, max_length=None)  # tokens of a pair are no text's
    recalling = replace(reranker, model=embedder or "", options=media, **own)
    print_search(run_search(options, recalling, reranker), Console(markup=False))
    if judgements is not None:
        scores = load_scores(options.place(RERANKED), judgements)
        compared = compare(scores, judgements, measures)
        print_comparison(Console(), scores, compared, {}, True)


def _check_given(output: str | None, engine: Mapping[str, Any]) -> None:
    if output is None or engine["model"] is None:
        raise UsageError(f"{'--output' if output is None else '--model'} is missing")


def _config(engine: Mapping[str, Any]) -> RerankerConfig:
    try:
        roots = roots_of(engine["media_root"])
        return built_here(RerankerConfig, engine, media_root=roots)
    except ValueError as error:
        raise UsageError(str(error)) from error


_OUTPUT = Annotated[str, typer.Argument(help="A job's --output directory")]
_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object only")]


@app.command("status")
def status_command(
    output: _OUTPUT,
    seconds: Annotated[
        float | None,
        typer.Argument(
            help="With --watch: from one look to the next; default: 2, or ten times what a look "
            "takes, if that is more"
        ),
    ] = None,
    is_watched: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Look again and again until the job is finished (exit code 0) or stopped (1)",
        ),
    ] = False,
    as_json: _JSON = False,
) -> None:
    """Show what a finished, a running or a stopped job did, and how to go on with it."""
    if seconds is not None and not (is_watched and seconds > 0):
        raise UsageError(f"seconds are --watch's, and above zero, got {seconds:g}")
    if is_watched:
        state = watch(output, seconds, as_json)
        raise typer.Exit(0 if state == "finished" else 1)
    found = read_status(output)
    if as_json:
        print(json.dumps(status_values(found)))
        return
    print_status(found, Console(markup=False))


@app.command("verify")
def verify_command(
    output: _OUTPUT,
    rescore: Annotated[
        str | None,
        typer.Option(
            help="also score a share of the pairs again, such as 1%, each alone, and say the "
            "largest difference and whether a rank moved"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="where the checkpoint is, if not where the job had it")
    ] = None,
    as_json: _JSON = False,
) -> None:
    """Prove that every input pair has exactly one row: ids are read again from the input and from
    the score files, and compared. Rows that changed since the job ended are named as well.
    """
    share = None if rescore is None else parse_share(rescore)
    counts = verify_output(output)
    found = None if share is None else rescored(output, share, own_engine(), model)
    if as_json:
        again = {} if found is None else {"rescored": asdict(found)}
        print(json.dumps(asdict(counts) | again))
        return
    is_embedded = read_status(output).manifest.job["form"] == "texts"
    what = "texts" if is_embedded else f"pairs of {counts.num_queries:,} queries"
    print(
        f"{counts.num_pairs:,} {what}: each has exactly one row "
        f"({counts.num_pairs - counts.num_failed:,} with a {'vector' if is_embedded else 'score'}, "
        f"{counts.num_failed:,} with an error)"
    )
    for code, num in counts.errors.items():
        print(f"  {num:,} x {code}")
    if found is not None:
        print(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. Every mistake of a user is one sentence on stderr."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    shown = logging.StreamHandler()
    shown.setFormatter(_Shown("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[shown])
    signal.signal(signal.SIGTERM, _interrupt)
    is_job = arguments[:1] in (["rerank"], ["embed"], ["search"])
    note_submitter()
    try:
        with given():
            code = app(arguments, standalone_mode=False, obj=arguments)
    except KeyboardInterrupt:
        code = 130
    except UsageError as error:
        return _failed(str(error), 2)
    except _CommandError as error:
        message = error.format_message()
        is_glob = message.startswith("Got unexpected extra argument")
        hint = ": quote a glob, as in 'pages/*.parquet', which the shell made several arguments of"
        return _failed(message.rstrip(".") + hint if is_glob else message, 2)
    except (JobError, OSError) as error:
        code = _failed(str(error), 1)
        if is_job:
            print(how_to_go_on(arguments, getattr(error, "ways", ())), file=sys.stderr)
        return code
    says_it_itself = arguments[:1] in (["submit"], ["status"])
    if code == 130 and not says_it_itself:  # typer makes an exit code of a KeyboardInterrupt
        kept = f"; {how_to_go_on(arguments)}" if is_job else ""
        print(f"\ninterrupted{kept}", file=sys.stderr)
    return code if isinstance(code, int) else 0


_CommandError: Any = typer.BadParameter.__base__
"""typer's own class of usage errors, which it does not name in public."""


def _failed(message: str, code: int) -> int:
    print(f"error: {printable(redacted(message))}", file=sys.stderr)
    return code


class _Shown(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
