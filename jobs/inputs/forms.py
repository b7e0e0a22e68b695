"""The input forms, opened and checked: candidate sets, pairs, run + queries + corpus, or texts to
embed.

Knows which tables a form needs; how well-known data sets name their files and columns.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pyarrow as pa

from shardrank.actors.families.family import Role
from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.columns import (
    CANDIDATE_COLUMNS,
    CANDIDATES,
    CONTENTS,
    DOCUMENT_COLUMNS,
    TABLE_COLUMNS,
)
from shardrank.jobs.inputs.lines import Layouts
from shardrank.jobs.inputs.parts import PRESETS, Preset, find_part, find_parts
from shardrank.jobs.inputs.paths import plain_type
from shardrank.jobs.inputs.pdfs import MAX_PAGES
from shardrank.jobs.inputs.runs import run_files
from shardrank.jobs.inputs.tables import (
    Mapped,
    OpenedTable,
    Table,
    check_types,
    open_table,
    require,
)
from shardrank.jobs.storage import Location, would_read

logger = logging.getLogger(__name__)

Form = Literal["sets", "pairs", "run", "texts"]
Mappings = dict[str, dict[str, str | tuple[str, ...]]]


_ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")

_TSV_LAYOUTS: dict[str, dict[int, tuple[str, ...]]] = {
    "queries": {2: ("query_id", "query")},
    "corpus": {2: ("doc_id", "doc")},
}
"""Files without a header in which two columns can mean one thing only."""


@dataclass(frozen=True, slots=True)
class InputOptions:
    """What the command line says about the input; nothing is opened yet.

    embeds: INPUT is a corpus, or queries, or has them inside; there are no pairs. max_pdf_pages: of
    a file of a corpus of PDFs.
    """

    input: str | None = None
    run: str | None = None
    queries: str | None = None
    corpus: str | None = None
    preset: str | None = None
    maps: tuple[str, ...] = ()
    embeds: Role | None = None
    max_pdf_pages: int = MAX_PAGES

    def check_apart_from(self, output: str) -> None:
        """Raises UsageError for an output that would be input the next time."""
        for uri in _locate(self).values():
            if would_read(Location.parse(uri), Location.parse(output)):
                raise UsageError(
                    f"--output {output} is inside {uri}: its files would be read as input the next "
                    "time; name a directory elsewhere"
                )


def roots_of(given: Sequence[str] | None) -> str | tuple[str, ...]:
    """The config's media_root for --media-root as often as it was given."""
    roots = tuple(given or ())
    return roots[0] if len(roots) == 1 else roots


@dataclass(frozen=True, slots=True)
class JobInput:
    """What workers need to read a unit. Candidate sets, pairs and texts are `queries` and `corpus`
    both.

    The id types are those of the list of pairs, and of the output. vector: the type of a text's.
    """

    form: Form
    queries: Table
    corpus: Table
    query_id_type: pa.DataType
    doc_id_type: pa.DataType
    vector: pa.DataType | None = None


@dataclass(frozen=True, slots=True)
class OpenedInput:
    """The driver's side of a JobInput. `run` is a URI: a table, or a TREC run file."""

    form: Form
    queries: OpenedTable
    corpus: OpenedTable
    run: str | None = None
    run_mapping: Mapped = field(default_factory=dict)
    instructions: OpenedTable | None = None

    def ordered_as(self, paths: Mapping[str, Sequence[str]]) -> "OpenedInput":
        """Each table's files as in `paths`, and those that are not there after them."""
        queries = self.queries.ordered_as(paths.get(self.queries.table.name, ()))
        is_one = self.corpus is self.queries
        corpus = queries if is_one else self.corpus.ordered_as(paths.get("corpus", ()))
        return replace(self, queries=queries, corpus=corpus)

    @property
    def tables(self) -> list[OpenedTable]:
        """Each once; the run, which may be a text file, is not among them."""
        distinct = [self.queries] if self.corpus is self.queries else [self.queries, self.corpus]
        return distinct + ([self.instructions] if self.instructions else [])


def open_job_input(options: InputOptions) -> OpenedInput:
    """Open and check everything that is named; raises UsageError with one sentence."""
    mapping = read_mappings(options.preset, options.maps)
    parts = _locate(options)
    for uri in parts.values():
        if uri.lower().endswith(_ARCHIVES):
            raise UsageError(f"{uri} is an archive: unpack it, and name what is inside")
    layouts = tsv_layouts(options.preset)
    if options.embeds is not None:
        ((name, uri),) = parts.items()
        texts = open_content(name, uri, mapping[name], layouts[name], options.max_pdf_pages)
        opened = OpenedInput("texts", texts, texts)
    elif "run" not in parts:
        if "queries" in parts or "corpus" in parts:
            raise UsageError(
                "queries and a corpus alone do not say which pairs to score: "
                "name the first stage's run with --run FILE (TREC run or Parquet)"
            )
        opened = _open_direct(parts, mapping, layouts)
    else:
        opened = _open_run(parts, mapping, layouts, options.max_pdf_pages)
    for remark in {remark: None for table in opened.tables for remark in unread(table)}:
        logger.info(remark)
    return opened


def read_mappings(preset: str | None, maps: Sequence[str]) -> Mappings:
    """Table -> column -> name in the files, of a preset and of `--map` over it."""
    columns = _preset(preset).columns
    mappings: Mappings = {table: dict(columns.get(table, {})) for table in TABLE_COLUMNS}
    for text in maps:
        table, column, name = _parse_map(text)
        mappings[table][column] = name
    return mappings


def tsv_layouts(preset: str | None) -> dict[str, Layouts]:
    """Table -> the layouts of its tab-separated files without a header."""
    known = _preset(preset).tsv
    return {table: _TSV_LAYOUTS.get(table, {}) | known.get(table, {}) for table in TABLE_COLUMNS}


def _preset(name: str | None) -> Preset:
    if name is None:
        return Preset()
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}; known presets: {', '.join(PRESETS)}")
    return PRESETS[name]


def _parse_map(text: str) -> tuple[str, str, str]:
    left, _, name = text.partition("=")
    table, _, column = left.partition(".")
    if not name or not column:
        raise UsageError(f"--map must be TABLE.COLUMN=NAME, got {text!r}")
    if table not in TABLE_COLUMNS:
        raise UsageError(f"--map: unknown table {table!r}; known: {', '.join(TABLE_COLUMNS)}")
    known = TABLE_COLUMNS[table]
    if "candidates" in known:
        known += tuple(f"{CANDIDATES}{field}" for field in CANDIDATE_COLUMNS)
    if column not in known:
        raise UsageError(f"--map: unknown column {column!r}; {table} has: {', '.join(known)}")
    return table, column, name


def _locate(options: InputOptions) -> dict[str, str]:
    """Part -> URI: what the options name, and what INPUT is or, as a directory, contains."""
    given = {"run": options.run, "queries": options.queries, "corpus": options.corpus}
    parts = {name: uri for name, uri in given.items() if uri}
    if options.embeds is not None:
        return _locate_texts(options, "corpus" if options.embeds == "document" else "queries")
    if options.input is not None:
        preset = _preset(options.preset)
        is_alone = not parts and not preset.input_is_run
        if is_alone and Location.parse(options.input).is_file:
            return {"input": options.input}
        parts = find_parts(options.input, preset, parts)
    if not parts:
        raise UsageError("no input: name one, or --run with --queries and --corpus")
    missing = [name for name in ("queries", "corpus") if name not in parts]
    if missing and "input" not in parts:
        raise UsageError(f"no {missing[0]}: name the table with --{missing[0]}")
    return parts


def _locate_texts(options: InputOptions, name: str) -> dict[str, str]:
    if options.input is None:
        raise UsageError(f"no input: name the {name}")
    if Location.parse(options.input).is_file:
        return {name: options.input}
    found = find_part(options.input, _preset(options.preset).parts.get(name, (name,)))
    return {name: found or options.input}


def _open_direct(
    parts: dict[str, str], mapping: Mappings, layouts: Mapping[str, Layouts]
) -> OpenedInput:
    opened = open_table("input", parts["input"], mapping["input"], layouts["input"])
    is_sets = opened.table.has("candidates")
    if is_sets and not all(file.is_parquet for file in opened.table.files):
        raise UsageError("input: candidate sets are read from Parquet only")
    check_types(opened)
    require(opened, ["query_id"])
    query, document = CONTENTS["pairs"]
    if is_sets:
        opened = _with_query_media(opened)
        _require_content(opened, query)
        return OpenedInput("sets", opened, opened)
    _require_content(opened, query)
    if not opened.table.has("doc_id"):
        require(opened, ["candidates"])
    _require_content(opened, document)
    for name in ("image", "video"):
        if opened.table.has(name):
            logger.info(f"input: {name} is the document's; a query's would be query_{name}")
    return OpenedInput("pairs", opened, opened)


def _with_query_media(opened: OpenedTable) -> OpenedTable:
    """Beside candidates, which have their own media, `image` and `video` are the query's."""
    columns = {
        column: path
        for column, path in opened.table.columns.items()
        if column not in DOCUMENT_COLUMNS
    }
    for name in ("image", "video"):
        query_name, path = f"query_{name}", opened.table.columns.get(name)
        if path is not None and query_name in columns:
            raise UsageError(
                f"input: {path!r} and {columns[query_name]!r} are both the query's {name}: "
                "leave one of them out"
            )
        if path is not None:
            columns[query_name] = path
    return replace(opened, table=replace(opened.table, columns=columns))


def _open_run(
    parts: dict[str, str],
    mapping: Mappings,
    layouts: Mapping[str, Layouts],
    max_pdf_pages: int,
) -> OpenedInput:
    queries, corpus = (
        open_content(name, parts[name], mapping[name], layouts[name], max_pdf_pages)
        for name in ("queries", "corpus")
    )
    if not run_files(Location.parse(parts["run"])):
        raise UsageError(f"run: no file at {parts['run']}")
    instructions = None
    if "instructions" in parts:
        instructions = open_table("instructions", parts["instructions"], mapping["instructions"])
        check_types(instructions)
    return OpenedInput("run", queries, corpus, parts["run"], mapping["run"], instructions)


def open_content(
    name: str,
    uri: str,
    mapping: Mapped,
    layouts: Layouts,
    max_pdf_pages: int = MAX_PAGES,
) -> OpenedTable:
    """The queries or the corpus. Raises UsageError that names a column which is missing."""
    opened = open_table(name, uri, mapping, layouts, max_pdf_pages)
    require(opened, TABLE_COLUMNS[name][:1])
    check_types(opened)
    _require_content(opened, *CONTENTS[name])
    return opened


def _require_content(opened: OpenedTable, columns: Sequence[str]) -> None:
    if not any(opened.table.has(column) for column in columns):
        require(opened, [columns[0]])


def job_input(opened: OpenedInput, query_ids: pa.DataType, doc_ids: pa.DataType) -> JobInput:
    return JobInput(
        opened.form,
        opened.queries.table,
        opened.corpus.table,
        plain_type(query_ids),
        plain_type(doc_ids),
    )


_PARTS_OF_TEXT = {"doc": ("title", "text"), "query": ("text",)}
_PLURALS = ("images", "videos")


def unread(opened: OpenedTable) -> Iterator[str]:
    """A sentence for each column, or field of a candidate, that looks like content and is not
    read.
    """
    table = opened.table
    names = [name for _, part in opened.filled for name in part.schema.names]
    whole = "query" if table.name == "queries" else "doc"
    if not table.has("candidates"):
        yield from _unread(table.name, whole, "", names, table.columns)
        return
    yield from _unread(table.name, "candidates", "query_", names, table.columns)
    fields = [each.name for each in opened.types["candidates"].value_type]
    paths = {name: name for name in fields if name in CANDIDATE_COLUMNS} | table.candidate_fields
    yield from _unread("input.candidates", whole, "", fields, paths)


def _unread(
    place: str, whole: str, prefix: str, names: Sequence[str], paths: Mapping[str, str]
) -> Iterator[str]:
    """paths: of columns, by the job's names; prefix: that of its names for media here."""
    parts = _PARTS_OF_TEXT.get(whole, ("doc", "title", "text"))
    read = {path.partition(".")[0] for name, path in paths.items() if name not in parts}
    if whole in paths:
        for name in parts:
            path = paths.get(name, name)
            if path in names and path not in read:
                yield f"{place}: {path!r} is not read, since {paths[whole]!r} is there"
    if "pdf" in names and "pdf" not in read and whole == "doc":
        yield f"{place}: 'pdf' is not read beside others; --map {place}.pdf=pdf would read it"
    for name in _PLURALS:
        if name in names and name not in read:
            column = f"{prefix}{name.removesuffix('s')}"
            yield f"{place}: {name!r} is not read; --map {place}.{column}={name} would read it"
