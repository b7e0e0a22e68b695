"""What README.md and docs/ say of the checkout is there: files, links, commands, options, codes."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import typer.main

from shardrank.actors import errors
from shardrank.cli import app
from tests.support.module_lines import PAGE, ROOT, modules, named

README = ROOT / "README.md"
GROUPS = {"rerank_error", "invalid_row", "media_error", "scoring_error", "failure"}
"""Codes of errors that are never raised themselves."""
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
_IS_PATH = re.compile(r"`((?:actors|bench|demo|jobs|serve|shardrank|tests)/[\w./*-]+)`")
_IS_MODULE = re.compile(r"-m ((?:bench|demo|shardrank|tests)(?:\.\w+)*)")
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")


@cache
def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def code_lines(page: str) -> list[str]:
    """Lines of indented and fenced code, without prompt and remark, continued ones joined."""
    fenced = "".join(re.findall(r"^```\w*\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    indented = re.findall(r"^ {4,}(.*)", page, re.MULTILINE)
    lines = "\n".join([*fenced.split("\n"), *indented]).replace("\\\n", " ").split("\n")
    return [line.strip().removeprefix("$ ").partition("  #")[0] for line in lines]


def parameters_of(command: str) -> list[typer.core.TyperArgument | typer.core.TyperOption]:
    """What a subcommand of `shardrank` takes, and those below it."""
    found = typer.main.get_command(app).commands[command]
    below = getattr(found, "commands", {}).values()
    return [parameter for each in (found, *below) for parameter in each.params]


def options_of(*commands: str) -> set[str]:
    parameters = [each for command in commands for each in parameters_of(command)]
    return {name for each in parameters for name in (*each.opts, *each.secondary_opts)}


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    titles = re.findall(r"^#+ (.*)", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_module_has_its_line_in_the_architecture():
    lines = named(PAGE.read_text("utf-8"))
    missing, gone = set(modules()) - set(lines), set(lines) - set(modules())
    assert not missing and not gone, (
        f"docs/architecture.md lacks {sorted(missing)} and names {sorted(gone)}, which are not "
        "there: python -m tests.support.module_lines"
    )
    assert len(lines) == len(set(lines))


def _path_of(module: str) -> str:
    """What `python -m` runs of it: the file, or a package's __main__."""
    path = module.replace(".", "/")
    return f"{path}/__main__.py" if (ROOT / path).is_dir() else f"{path}.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    text = page.read_text("utf-8")
    paths = {*_IS_PATH.findall(text), *map(_path_of, _IS_MODULE.findall(text))}
    assert [path for path in paths if not list(ROOT.glob(path))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page):
    for target, anchor in _LINK.findall(page.read_text("utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_the_readme_is_short_and_leads_to_every_page():
    readme = text_of("README.md")
    assert len(readme.splitlines()) <= 160 and len(readme.split()) <= 1_300
    pages = {f"docs/{page.name}" for page in PAGES if page != README}
    assert pages <= {target for target, _ in _LINK.findall(readme)}


def test_the_architecture_leads_through_fifteen_files():
    table = text_of("docs/architecture.md").partition("## The fifteen files")[2].partition("##")[0]
    assert len(re.findall(r"^\| `\S+\.py` \|", table, re.MULTILINE)) == 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_have_the_options_that_it_gives_them(page):
    bench = "".join(path.read_text("utf-8") for path in (ROOT / "bench").rglob("*.py"))
    for line in code_lines(page.read_text("utf-8")):
        name, given = line.partition(" ")[0], _OPTION.findall(line)
        command = line.split()[1] if name == "shardrank" else None
        if command == "bench":
            assert [option for option in given if f'"{option}"' not in bench] == [], line
        elif command is not None:
            sent = ("rerank", "embed", "verify", "evaluate") if command == "submit" else ()
            assert set(given) <= options_of(command, *sent), line
        elif name == "make":
            assert re.search(rf"^{line.split()[1]}:", text_of("Makefile"), re.MULTILINE), line


@pytest.mark.parametrize(
    ("command", "pages"),
    [
        ("rerank", ("job",)),
        ("status", ("job",)),
        ("verify", ("job",)),
        ("evaluate", ("evaluation", "inputs", "job")),
        ("embed", ("embedding", "job")),
        ("search", ("retrieval", "job")),
        ("retrieve", ("retrieval",)),
        ("serve", ("endpoint", "job")),
        ("new-key", ("endpoint",)),
        ("submit", ("cluster",)),
    ],
)
def test_every_option_of_a_command_is_on_its_page(command, pages):
    said = set(_OPTION.findall("".join(text_of(f"docs/{page}.md") for page in pages)))
    for each in parameters_of(command):
        names = {*each.opts, *each.secondary_opts}
        assert each.param_type_name == "argument" or names & said, names


def test_every_error_code_is_in_the_jobs_table_and_no_other():
    table = text_of("docs/job.md").partition("## Rows with an error")[2].partition("\n\nMore ")[0]
    cells = re.findall(r"^\| (`\w.*?) \|", table, re.MULTILINE)
    said = sorted(re.findall(r"`(\w+)`", " ".join(cells)))
    kinds = [each for each in vars(errors).values() if isinstance(each, type)]
    codes = {kind.code for kind in kinds if issubclass(kind, errors.RerankError)}
    assert said == sorted(codes - GROUPS)


def test_the_readmes_library_run_prints_what_it_says():
    readme = text_of("README.md")
    code, after = re.findall(r"```python\n([^`]*)```\n\n(.*?)\n\n", readme, re.DOTALL)[0]
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.split() == after.split(), run.stderr
