"""The section of docs/architecture.md that names every module of the package, from docstrings.

`python -m tests.support.module_lines` writes it anew.
"""

import ast
import re
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
FOLDERS = ("shardrank", "actors", "jobs", "serve")
_SECTION = re.compile(r"(?<=<!-- every file -->\n).*(?=<!-- end -->)", re.DOTALL)
_NAMED = re.compile(r"^- `(\S+\.py)`: ", re.MULTILINE)
_SENTENCE = re.compile(r".+?[.?](?= [A-Z`]|$)")


def modules() -> list[str]:
    """The package's files but `__init__.py`, from the checkout's root, folder by folder."""
    return [
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"), key=lambda path: (path.parent, path.name))
        if path.resolve() == path and path.name != "__init__.py"  # and no link to another one's
    ]


def named(page: str) -> list[str]:
    """The files that the section names."""
    return _NAMED.findall(section(page))


def section(page: str) -> str:
    found = _SECTION.search(page)
    assert found is not None, f"{PAGE} has lost the marks of its section"
    return found.group()


def written() -> str:
    """The section as the docstrings have it, by folder."""
    lines = [""]
    for folder, members in groupby(modules(), key=lambda module: Path(module).parent):
        lines += [f"**{folder}/** {_first_sentence(folder / '__init__.py')}", ""]
        lines += [f"- `{module}`: {_first_sentence(Path(module))}" for module in members]
        lines.append("")
    return "\n".join([*lines, ""])


def _first_sentence(module: Path) -> str:
    """What its docstring begins with."""
    text = ast.get_docstring(ast.parse((ROOT / module).read_text("utf-8"))) or ""
    words = " ".join(text.split("\n\n")[0].split())
    found = _SENTENCE.match(words)
    return found.group() if found else words


if __name__ == "__main__":
    PAGE.write_text(_SECTION.sub(lambda _: written(), PAGE.read_text("utf-8")), "utf-8")
