"""The evaluation as one HTML file: measures, groups, queries that gained and lost, errors.

Everything is inside the file (style, bars as SVG, pictures as data URIs): it can be mailed, and it
reads without a network. There is no script: what opens large is a popover of the browser's own.
Knows nothing of how values were measured or content was read.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from html import escape
from pathlib import Path

from shardrank.jobs.evaluate.measures import Candidate, Comparison, Scores
from shardrank.jobs.evaluate.qrels import Qrels

_STYLE = Path(__file__).with_suffix(".css").read_text("utf-8")
_NUM_QUERIES = 8  # shown of those that gained most, and of those that lost most
_NUM_DOCUMENTS = 5  # shown of each order
_MAX_BARS = 240
_MAX_CHARS = 240


@dataclass(frozen=True, slots=True)
class Picture:
    """Data URIs; without `large` the thumbnail is all that there is to see."""

    thumbnail: str
    large: str | None = None

    @property
    def anchor(self) -> str:
        """The id of its large picture, which is in the file once, however often it is shown."""
        return f"large-{sha256((self.large or '').encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Preview:
    """What a person sees of a query or document."""

    texts: tuple[str, ...] = ()
    images: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """groups: name (language, task) -> query -> label. featured: queries to show first."""

    title: str
    scores: Scores
    comparison: Comparison
    qrels: Qrels
    queries: Mapping[str, Preview] = field(default_factory=dict)
    documents: Mapping[str, Preview] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    featured: Sequence[str] = ()


def shown_queries(comparison: Comparison) -> tuple[list[str], list[str]]:
    """The queries that gained most and that lost most by the first measure."""
    changes = comparison.changes(comparison.measures[0])
    gained = [query for query, change in changes[:_NUM_QUERIES] if change > 0]
    lost = [query for query, change in changes[::-1][:_NUM_QUERIES] if change < 0]
    return gained, lost


def shown_documents(scores: Scores, comparison: Comparison, queries: Iterable[str]) -> set[str]:
    """Ids of the documents that the page shows for `queries`."""
    return {
        doc_id
        for query in queries
        for run in (comparison.before_run, comparison.after_run)
        for doc_id in _top(run.get(query, {}))
    }


def render(page: Page) -> str:
    gained, lost = shown_queries(page.comparison)
    sections = [
        _head(page),
        _measures(page.comparison),
        _queries(page, "examples", "Examples", page.featured),
        *(_group(page.comparison, name, labels) for name, labels in page.groups.items()),
        _changes(page.comparison),
        _queries(page, "gained", "Gained most", gained),
        _queries(page, "lost", "Lost most", lost),
        _errors(page.scores),
    ]
    title = escape(page.title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the measures</a>\n'
        f'<main id="main" tabindex="-1">\n{"".join(sections)}</main>\n{_large_pictures(page)}'
        "</body>\n</html>\n"
    )


def _head(page: Page) -> str:
    comparison, scores = page.comparison, page.scores
    facts = [
        f"{len(comparison.queries):,} queries measured",
        f"{scores.num_pairs:,} pairs",
        f"{sum(scores.errors.values()):,} pairs failed",
    ]
    if comparison.missing_queries:
        facts.append(f"{len(comparison.missing_queries):,} judged queries not in the run")
    lead = f"<p>{' · '.join(facts)}</p>"
    if not comparison.before:
        lead += "<p>The input named no rank or score of a first stage: there is no “before”.</p>"
    return f"<h1>{escape(page.title)}</h1>\n{lead}\n"


def _measures(comparison: Comparison) -> str:
    rows = [_value_row(*row) for row in comparison.averages()]
    return _values_table("Measures", "Measure", rows)


def _group(comparison: Comparison, name: str, labels: Mapping[str, str]) -> str:
    rows = [
        _value_row(f"{label} ({len(queries)})", *comparison.averages(queries)[0][1:])
        for label, queries in comparison.members(labels).items()
    ]
    return _values_table(f"{comparison.measures[0]} by {name}", name, rows)


def _values_table(title: str, first: str, rows: Sequence[str]) -> str:
    return (
        f"<section><h2>{escape(title)}</h2>\n<table>\n<thead><tr>"
        f'<th scope="col">{escape(first)}</th><th scope="col" class="wide">'
        '<span class="key before"></span> first stage <span class="key after"></span> reranked'
        '</th><th scope="col" class="num">before</th><th scope="col" class="num">after</th>'
        f'<th scope="col" class="num">change</th></tr></thead>\n<tbody>\n{"".join(rows)}'
        "</tbody>\n</table></section>\n"
    )


def _value_row(name: str, before: float, after: float) -> str:
    return (
        f'<tr><th scope="row">{escape(name)}</th><td class="wide">{_bars(before, after)}</td>'
        f'<td class="num">{_number(before)}</td><td class="num">{_number(after)}</td>'
        f'<td class="num">{_signed(after - before)}</td></tr>\n'
    )


def _bars(before: float, after: float) -> str:
    """Two bars on a scale of 0 to 1; the numbers beside them say the same."""
    return (
        '<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="10"/>'
        f'<rect class="before" y="1" width="{_percent(before)}" height="3"/>'
        f'<rect class="after" y="5" width="{_percent(after)}" height="4"/></svg>'
    )


def _changes(comparison: Comparison) -> str:
    measure = comparison.measures[0]
    values = [change for _, change in comparison.changes(measure)]
    if not values:
        return ""
    better, worse = sum(v > 0 for v in values), sum(v < 0 for v in values)
    words = f"{better:,} gained, {worse:,} lost, {len(values) - better - worse:,} stayed equal"
    step = max(1, math.ceil(len(values) / _MAX_BARS))
    shown = values[::step]
    bars = "".join(_change_bar(index, value) for index, value in enumerate(shown))
    return (
        f"<section><h2>Change of {escape(measure)}, query by query</h2><p>{words}.</p>"
        f'<svg class="changes" viewBox="0 -1 {len(shown)} 2" preserveAspectRatio="none" '
        f'role="img" aria-label="{escape(words)}">{bars}</svg></section>\n'
    )


def _change_bar(index: int, change: float) -> str:
    top, kind = (-change, "gain") if change > 0 else (0.0, "loss")
    return (
        f'<rect class="{kind}" x="{index}.1" y="{top:.3f}" width="0.8" '
        f'height="{max(abs(change), 0.005):.3f}"/>'
    )


def _queries(page: Page, anchor: str, title: str, queries: Sequence[str]) -> str:
    if not queries:
        return ""
    cards = "".join(_query(page, query, index < 3) for index, query in enumerate(queries))
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>\n{cards}</section>\n'


def _query(page: Page, query: str, is_open: bool) -> str:
    measure, comparison = page.comparison.measures[0], page.comparison
    before = comparison.before.get(measure, {}).get(query, math.nan)
    after = comparison.after[measure].get(query, math.nan)
    found = sorted(page.scores.candidates.get(query, []), key=lambda c: c.logit is not None)
    candidates = {c.doc_id: c for c in found}  # of equal ids the one that was scored
    labels = [labels[query] for labels in page.groups.values() if query in labels]
    opened = ' open=""' if is_open else ""
    columns = _order(page, query, "First stage", comparison.before_run, candidates)
    columns += _order(page, query, "Reranked", comparison.after_run, candidates)
    facts = f"<small>{escape(' · '.join([query, *labels]))}</small>"
    return (
        f"<details{opened}><summary>{_shown(page.queries.get(query), query, facts)}"
        f'<span class="num">{escape(measure)} {_number(before)} → {_number(after)}</span>'
        f'</summary>\n<div class="orders">{columns}</div></details>\n'
    )


def _order(
    page: Page,
    query: str,
    title: str,
    run: Mapping[str, Mapping[str, float]],
    candidates: Mapping[str, Candidate],
) -> str:
    ranking = run.get(query)
    if not ranking:
        return ""
    judged = page.qrels.get(query, {})
    items = [
        _item(page.documents.get(doc_id), candidates[doc_id], judged.get(doc_id, 0), title)
        for doc_id in _top(ranking)
    ]
    return f"<div><h3>{title}</h3><ol>{''.join(items)}</ol></div>"


def _item(preview: Preview | None, candidate: Candidate, grade: int, title: str) -> str:
    is_reranked = title == "Reranked"
    score = candidate.score if is_reranked else candidate.first_stage_score
    facts = [escape(candidate.doc_id)]
    if score is not None:
        facts.append(f"score {score:.3f}")
    if is_reranked and candidate.first_stage_rank is not None:
        facts.append(f"was {candidate.first_stage_rank}")
    mark = relevant = ""
    if grade > 0:
        relevant = ' class="relevant"'
        mark = f'<strong class="mark">✓ relevant{f" ({grade})" if grade > 1 else ""}</strong>'
    below = f"<small>{' · '.join(facts)}</small>{mark}"
    return f"<li{relevant}>{_shown(preview, candidate.doc_id, below)}</li>"


def _shown(preview: Preview | None, name: str, below: str) -> str:
    """Its pictures, and beside them its texts over `below`, which is markup."""
    texts: Iterable[str] = ()
    images = ""
    if preview is not None:
        images = "".join(_image(picture, name) for picture in preview.images)
        texts = (f"<span>{escape(_clip(text))}</span>" for text in preview.texts)
    words = "".join(texts) or ("" if images else f"<code>{escape(name)}</code>")
    return f'<span class="pictures">{images}</span><span class="words">{words}{below}</span>'


def _image(picture: Picture, name: str) -> str:
    image = f'<img src="{escape(picture.thumbnail)}" alt="image of {escape(name)}">'
    if picture.large is None:
        return image
    return f'<button type="button" popovertarget="{picture.anchor}" title="Larger">{image}</button>'


def _large_pictures(page: Page) -> str:
    shown = [*page.queries.items(), *page.documents.items()]
    large = {
        picture.anchor: _large_picture(picture, name)
        for name, preview in shown
        for picture in preview.images
        if picture.large
    }
    return "".join(large.values())


def _large_picture(picture: Picture, name: str) -> str:
    close = f'type="button" popovertarget="{picture.anchor}" popovertargetaction="hide"'
    return (
        f'<div id="{picture.anchor}" popover=""><p><code>{escape(name)}</code>'
        f"<button {close}>Close</button></p>"
        f'<img src="{escape(picture.large or "")}" alt="image of {escape(name)}"></div>\n'
    )


def _clip(text: str) -> str:
    return text if len(text) <= _MAX_CHARS else text[:_MAX_CHARS].rstrip() + " …"


def _errors(scores: Scores) -> str:
    if not scores.errors:
        return ""
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(code)}</code></th><td class="num">{count:,}</td></tr>'
        for code, count in scores.errors.most_common()
    )
    return (
        '<section><h2>Pairs that failed</h2><table><thead><tr><th scope="col">error_code</th>'
        f'<th scope="col" class="num">pairs</th></tr></thead><tbody>{rows}</tbody></table>'
        "</section>\n"
    )


def _top(ranking: Mapping[str, float]) -> list[str]:
    return sorted(ranking, key=lambda doc_id: -ranking[doc_id])[:_NUM_DOCUMENTS]


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.3f}"


def _percent(value: float) -> str:
    return "0" if math.isnan(value) else f"{100 * min(max(value, 0), 1):.1f}"
