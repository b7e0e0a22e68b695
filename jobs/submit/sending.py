"""What goes along with a submitted command: the files of its working directory, its paths as the
cluster's nodes have them, and variables by their names. Knows nothing of how it is sent.
"""

import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardrank.jobs.errors import UsageError
from shardrank.jobs.secrets import HIDDEN, redacted_argument
from shardrank.jobs.storage import Location

_CHECKPOINTS = {"model", "adapter"}
_READ = {"input", "run", "queries", "corpus", "qrels", "media_root"} | _CHECKPOINTS
_WRITTEN = {"output", "report"}
_KEYS = (".env", ".env.*", "*.pem", "*.key", ".netrc", ".ssh/", ".aws/")
"""What is left out of every working directory."""
_GLOB = re.compile(r"[*?\[{]")
_NUM_NAMED = 3


@dataclass(frozen=True, slots=True)
class WorkingDirectory:
    path: Path
    excludes: tuple[str, ...]
    sizes: Mapping[Path, int]
    limit: int

    @classmethod
    def read(cls, given: str, excludes: Sequence[str]) -> "WorkingDirectory":
        """What Ray would send of it. Raises UsageError where that is more than Ray takes."""
        from ray._private import ray_constants
        from ray._private.runtime_env import packaging

        path = Path(given).absolute()
        if not path.is_dir():
            raise UsageError(f"--working-dir {given}: there is no such directory here")
        sizes: dict[Path, int] = {}

        def add(each: Path) -> None:
            if each.is_file():
                sizes[each] = each.stat().st_size

        left_out = (*_KEYS, *excludes)
        defaults = ray_constants.get_runtime_env_default_excludes()
        matches = packaging._get_excludes(path, [*defaults, *left_out])
        packaging._dir_travel(path, [matches], add, include_gitignore=True, logger=_Silent())
        found = cls(path, left_out, sizes, packaging.GCS_STORAGE_MAX_SIZE)
        if found.size >= found.limit:
            raise UsageError(f"--working-dir {given} has {found._too_much()}")
        return found

    @property
    def size(self) -> int:
        return sum(self.sizes.values())

    def _too_much(self) -> str:
        largest = sorted(self.sizes, key=self.sizes.__getitem__, reverse=True)[:_NUM_NAMED]
        named = ", ".join(f"{e.relative_to(self.path)} ({_mb(self.sizes[e])})" for e in largest)
        return (
            f"{_mb(self.size)} of files, and Ray takes less than {_mb(self.limit)}: leave out with "
            f"--exclude or a .rayignore what the job does not need, the largest being {named}"
        )

    def __str__(self) -> str:
        return (
            f"{len(self.sizes):,} files, {_mb(self.size)} of at most {_mb(self.limit)}, without "
            "what .gitignore, .rayignore and --exclude name, .git, .env files and private keys"
        )

    def __contains__(self, path: Path) -> bool:
        return any(each == path or path in each.parents for each in self.sizes)


class _Silent:
    """A log for Ray, which else names its ignore files once a folder."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def read_variables(names: Sequence[str]) -> dict[str, str]:
    """This process's. Raises UsageError for a value in the place of a name, and never says it."""
    values = {}
    for name in names:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UsageError(
                f"--env {name.partition('=')[0]}: only a variable's name is given, whose value is "
                "sent; a value here would be seen in `ps` and in the shell's history"
            )
        if name not in os.environ:
            raise UsageError(f"--env {name}: there is no such variable here; export it first")
        values[name] = os.environ[name]
    return values


@dataclass(frozen=True, slots=True)
class Paths:
    """The paths of this machine that the nodes have too: all of them where there is no other
    machine, those below `shared`, and read ones in the working directory.
    """

    hosts: frozenset[str]
    shared: tuple[str, ...] = ()
    directory: WorkingDirectory | None = None

    def place(self, option: Any, value: str) -> str:
        """The value that is right on the nodes. Raises UsageError where there is none."""
        if option.name not in _READ | _WRITTEN:
            return value
        location = Location.parse(value)
        if not location.is_local:
            return value
        path = Path(location.path)
        is_written = option.name in _WRITTEN
        if option.name in _CHECKPOINTS and not path.exists():
            return value  # a name on the hub, or a path of the nodes
        if self._is_everywhere(path):
            return str(path)
        if self.directory is not None and not is_written and path in self.directory:
            return str(path.relative_to(self.directory.path))
        known = path.parent if is_written or _GLOB.search(str(path)) else path
        if os.path.isabs(value) and not known.exists():
            return value  # not of this machine, so of theirs
        along = "" if is_written else ", send a small one along by --working-dir"
        along = ", a name on the hub" if option.name in _CHECKPOINTS else along
        raise UsageError(f"{_name(option)} {value}: {self._sentence(path, along)}")

    def _is_everywhere(self, path: Path) -> bool:
        roots = [Path(each).absolute() for each in self.shared]
        is_alone = self.hosts == {socket.gethostname()}
        return is_alone or any(root == path or root in path.parents for root in roots)

    def _sentence(self, path: Path, along: str) -> str:
        others = sorted(self.hosts - {socket.gethostname()})
        named = ", ".join(others[:_NUM_NAMED])
        more = f" and {len(others) - _NUM_NAMED} more" if len(others) > _NUM_NAMED else ""
        return (
            f"this is a path of this machine, and the cluster's nodes are others ({named}{more}): "
            f"use s3:// or gs://{along}, or say --shared {path.parent} if every node has that "
            "directory too"
        )


def _name(option: Any) -> str:
    return option.opts[0] if option.param_type_name == "option" else option.name.upper()


def placed(
    command: Any, arguments: Sequence[str], place: Callable[[Any, str], str]
) -> Iterator[str]:
    """The arguments of a command, each value of an option as `place` has it."""
    named = {name: each for each in command.params for name in each.opts}
    positional = iter([each for each in command.params if each.param_type_name == "argument"])
    awaiting = None
    for word in arguments:
        name, equals, value = word.partition("=")
        if awaiting is not None:
            yield place(awaiting, word)
            awaiting = None
        elif not word.startswith("-"):
            yield place(next(positional), word)
        elif equals and name in named:
            yield f"{name}={place(named[name], value)}"
        else:
            yield word
            option = named.get(name)
            awaiting = None if option is None or option.is_flag else option


def check_public(arguments: Sequence[str]) -> None:
    """Raises UsageError for credentials in an argument: Ray shows and logs a job's command."""
    for each in arguments:
        if (shown := redacted_argument(each)) != each:
            raise UsageError(
                f"{shown}: Ray shows a job's command on its dashboard and writes it into its log, "
                f"and there are credentials in the place of {HIDDEN}: leave them out, and give "
                "them by name, as in --env AWS_ACCESS_KEY_ID --env AWS_SECRET_ACCESS_KEY"
            )
