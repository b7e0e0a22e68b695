"""Tab-separated tables: their columns' names, from a header line or, without one, by their number.

No quoting and no escapes: a value is what stands between two tabs, as in MS MARCO.
"""

from collections.abc import Mapping, Sequence

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs import lines
from shardrank.jobs.storage import Location

Layouts = Mapping[int, tuple[str, ...]]
"""Number of columns -> their names in a file without a header."""


def tsv_columns(
    name: str, file: Location, known: Sequence[str], layouts: Layouts
) -> tuple[str, ...]:
    """The names of a file's columns; none for a file without a line.

    known: names of the id columns, of which a header has at least one. Raises UsageError for a
    number of columns that says nothing.
    """
    number, first = next(lines.text_lines(file), (0, ""))
    fields = tuple(first.split("\t"))
    if not number:
        return ()
    if any(field in known for field in fields):
        twice = [field for field in fields if fields.count(field) > 1]
        if twice:
            raise UsageError(f"{name}: column {twice[0]!r} stands twice in {file}")
        return fields
    if len(fields) in layouts:
        return layouts[len(fields)]
    read = "; ".join(f"{num} ({', '.join(names)})" for num, names in sorted(layouts.items()))
    raise UsageError(
        f"{name}: {file}, line {number} has {len(fields)} tab-separated columns and is no header "
        f"with one of {', '.join(known)}; without a header are read: "
        f"{read or 'none here, see --preset'}"
    )
