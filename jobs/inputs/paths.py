"""Paths into structs, such as `content.text`, in rows, tables and schemas, and the types there.

A column whose own name has the dot comes first.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt


def value_at(row: Mapping[str, Any] | None, path: str) -> Any:
    """What the row has there; None where it, or something on the way, is missing."""
    if not isinstance(row, Mapping):
        return None
    if path in row:
        return row[path]
    root, dot, rest = path.partition(".")
    return value_at(row.get(root), rest) if dot else None


def is_begun(row: Mapping[str, Any], path: str) -> bool:
    """Whether the row has the column in which the path begins."""
    return path in row or path.partition(".")[0] in row


def column_at(table: pa.Table, path: str) -> pa.ChunkedArray:
    """The column of a table that was read with this path among its columns."""
    if path in table.schema.names:
        return table[path]
    root, *rest = path.split(".")
    return pc.struct_field(table[root], rest)


def column_of(schema: pa.Schema, path: str) -> str:
    """The column that a path leads into, whole."""
    return path if path in schema.names else path.partition(".")[0]


def type_at(fields: pa.Schema | pa.DataType, path: str) -> pa.DataType | None:
    """The type there, None where a schema or a struct has no such path."""
    if not isinstance(fields, pa.Schema) and not pt.is_struct(fields):
        return None
    kinds = {field.name: field.type for field in fields}
    if path in kinds:
        return kinds[path]
    root, dot, rest = path.partition(".")
    return type_at(kinds[root], rest) if dot and root in kinds else None


def names_near(fields: pa.Schema | pa.DataType, path: str) -> list[str]:
    """What a message shows for a path that is not there: the names where it went astray."""
    root, _, rest = path.partition(".")
    inner = type_at(fields, root)
    if rest and inner is not None and pt.is_struct(inner):
        return [f"{root}.{name}" for name in names_near(inner, rest)]
    return sorted(field.name for field in fields)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The one type of the same values, whatever a file keeps them as; integers as they are."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pt.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pt.is_string(kind) or pt.is_string_view(kind):
        return pa.large_string()
    if pt.is_binary(kind) or pt.is_binary_view(kind) or pt.is_fixed_size_binary(kind):
        return pa.large_binary()
    if is_list(kind):
        return pa.large_list(plain_type(kind.value_type))
    if pt.is_struct(kind):
        return pa.struct([pa.field(each.name, plain_type(each.type)) for each in kind])
    return kind


def is_list(kind: pa.DataType) -> bool:
    known = (pt.is_list, pt.is_large_list, pt.is_list_view, pt.is_fixed_size_list)
    return any(each(kind) for each in known)


def nested(kind: pa.DataType) -> Iterator[pa.DataType]:
    """The type and those of all its fields, at any depth."""
    yield kind
    for index in range(kind.num_fields):
        yield from nested(kind.field(index).type)
