import inspect
import pickle
import re

import pytest

from shardrank.actors import errors
from shardrank.actors.errors import RerankError

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, RerankError)
]
LEAF = re.compile(r"^(?P<indent>[ │]*)[├└]── (?P<name>\w+)(?: +(?P<code>[a-z_]+(?=  |$)))?")


def drawn_tree() -> dict[str, tuple[str, str | None]]:
    """Class name to (parent's name, code or None) as the module's docstring draws them."""
    drawn, parents = {}, {0: "RerankError"}
    for line in (errors.__doc__ or "").splitlines():
        if match := LEAF.match(line):
            depth = len(match["indent"]) // 4
            parents[depth] = match["name"]
            drawn[match["name"]] = (parents[depth - 1], match["code"])
    return drawn


def test_every_code_is_one_class() -> None:
    codes = [kind.code for kind in CLASSES]
    assert len(set(codes)) == len(codes) > 20


def test_the_drawn_tree_is_the_real_one() -> None:
    real = {kind.__name__: kind.__mro__[1].__name__ for kind in CLASSES if kind is not RerankError}
    assert {name: parent for name, (parent, _) in drawn_tree().items()} == real


def test_the_drawn_codes_are_the_real_ones() -> None:
    real = {kind.__name__: kind.code for kind in CLASSES}
    drawn = {name: code for name, (_, code) in drawn_tree().items() if code}
    assert len(drawn) > 20
    assert drawn == {name: real[name] for name in drawn}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling(kind: type[RerankError]) -> None:
    error = pickle.loads(pickle.dumps(kind("a sentence")))
    assert (type(error), str(error), error.code) == (kind, "a sentence", kind.code)


def test_a_sentence_is_valid_unicode_whatever_a_path_held() -> None:
    error = RerankError("\ud800.png: no such file, é 東")
    assert str(error).encode("utf-8").decode() == "\\ud800.png: no such file, é 東"


def test_a_long_message_keeps_its_ends() -> None:
    message = str(RerankError("data:" + "x" * 100_000 + ": no such file"))
    assert len(message) < 1_100
    assert message.startswith("data:xxx") and message.endswith("xxx: no such file")
