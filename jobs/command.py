"""A job's command as it is printed: pasted into the same shell, it runs."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence

from shardrank.jobs.errors import Way
from shardrank.jobs.secrets import HIDDEN, redacted_argument

RESUMED_BY = "SHARDRANK_RESUMED_BY"
"""The variable that has the words after `shardrank submit resume`, in a job that was submitted."""
HIDDEN_SENTENCE = f"(with the credentials in the place of {HIDDEN})"


def pasteable(arguments: Sequence[str]) -> str:
    """The whole command, quoted, without the credentials of URIs."""
    return shlex.join([*_program(), *map(redacted_argument, arguments)])


def _program() -> list[str]:
    """The program: its name where the shell finds this environment's, else its path or module."""
    script = os.path.join(os.path.dirname(sys.executable), "shardrank")
    found = shutil.which("shardrank")
    if found is not None and os.path.dirname(os.path.abspath(found)) == os.path.dirname(script):
        return ["shardrank"]
    if os.path.basename(sys.argv[0]) == "shardrank" and os.path.isfile(sys.argv[0]):
        return [os.path.abspath(sys.argv[0])]
    return [sys.executable, "-m", "shardrank.cli"]


def how_to_go_on(arguments: Sequence[str], ways: Sequence[Way] = ()) -> str:
    """What an interrupted or failed job says at the end.

    ways: what must change in the command, where it would fail again as it is.
    """
    lines = ["what is finished is kept, go on with:", f"  {_again(arguments)}"]
    if ways:
        lines = ["what is finished is kept, and the same command would stop again:"]
    for way in ways:
        added = [each for each in way.arguments if each not in arguments]
        lines += [f"{way.purpose}:", f"  {_again(arguments, added)}"]
    if any(redacted_argument(each) != each for each in arguments):
        lines.append(HIDDEN_SENTENCE)
    return "\n".join(lines)


def _again(arguments: Sequence[str], added: Sequence[str] = ()) -> str:
    """The command with what is added, as it is said where the user is."""
    resumed_by = os.environ.get(RESUMED_BY)
    if resumed_by is None:
        return pasteable([*arguments, *added])
    return shlex.join(["shardrank", "submit", "resume", *shlex.split(resumed_by), *added])
