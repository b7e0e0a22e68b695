"""What the benchmark writes for other implementations, and that these may be missing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from bench.checkpoints.presets import FILES
from bench.settings import CLASSES
from shardrank.actors.families.family import Side, VisualSpan
from shardrank.actors.families.qwen3_vl_reranker import QWEN3_VL_RERANKER
from shardrank.actors.prompt import PromptEncoder

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "golden" / "tiny"
TEMPLATE = (FILES / "chat_template.jinja").read_text("utf-8")
TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))
ENCODER = PromptEncoder(TINY / "tokenizer.json", neutralize=False)
SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".'
)

Parts = list[dict[str, str]]
IMAGE = {"type": "image", "image": "a.png"}


def text(written: str) -> dict[str, str]:
    return {"type": "text", "text": written}


CASES: dict[str, tuple[Parts, Parts]] = {
    "text": ([text("where?")], [text("here")]),
    "image": ([text("where?")], [IMAGE]),
    "images of both sides": ([IMAGE, IMAGE], [IMAGE]),
    "mixed": ([IMAGE, text("like this")], [IMAGE, IMAGE, text("one"), text("two")]),
    "null": ([text("where?")], []),
    "empty text": ([text("where?")], [text("")]),
    "newlines and spaces": ([text(" x\n")], [text("\n\ty  ")]),
}


def render(messages: list[dict[str, Any]], **values: Any) -> str:
    rendered, _ = render_jinja_template([messages], chat_template=TEMPLATE, **values)
    return rendered[0]


def official(query: Parts, document: Parts, instruction: str) -> str:
    """The engine's own prompt, of images of one token each."""
    ids = ENCODER.encode(instruction, (side(query), side(document)), 10_240, "document").input_ids
    return TOKENIZER.decode(ids.tolist(), skip_special_tokens=False)


def side(parts: Parts) -> Side:
    spans = [VisualSpan(0, (1, 1)) for part in parts if part["type"] == "image"]
    return Side(tuple(spans), tuple(part["text"] for part in parts if part["type"] == "text"))


def pair(query: Any, document: Any) -> list[dict[str, Any]]:
    return [{"role": "query", "content": query}, {"role": "document", "content": document}]


@pytest.mark.parametrize(("query", "document"), CASES.values(), ids=CASES)
def test_a_pair_of_messages_gives_the_official_prompt(query, document):
    expected = official(query, document, QWEN3_VL_RERANKER.instruction)
    assert render(pair(query, document)) == expected
    assert render(pair(query, document), add_generation_prompt=True) == expected


@pytest.mark.parametrize(("query", "document"), CASES.values(), ids=CASES)
def test_an_instruction_comes_as_a_system_message_or_as_a_variable(query, document):
    expected = official(query, document, "Find it.")
    system = {"role": "system", "content": [text("Find it.")]}
    assert render([system, *pair(query, document)]) == expected
    assert render(pair(query, document), instruction="Find it.") == expected


def test_contents_may_be_strings_with_placeholders_in_them():
    written = "<|vision_start|><|image_pad|><|vision_end|>like this"
    expected = official([IMAGE, text("like this")], [text("here")], QWEN3_VL_RERANKER.instruction)
    assert render(pair(written, "here"), instruction="") == expected


def test_the_official_scripts_own_messages_give_the_official_prompt():
    query, document = CASES["mixed"]
    user = [text("<Instruct>: Find it."), text("<Query>:"), *query]
    user += [text("\n<Document>:"), *document]
    messages = [
        {"role": "system", "content": [text(SYSTEM)]},
        {"role": "user", "content": user},
    ]
    rendered = render(messages, add_generation_prompt=True)
    assert rendered == official(query, document, "Find it.")


def test_the_files_say_what_the_tokenizer_and_the_official_script_say():
    image_processor, config, special, yes_no = (
        json.loads((FILES / name).read_text())
        for name in (
            "preprocessor_config.json",
            "config.json",
            "tokenizer_config.json",
            "1_LogitScore/config.json",
        )
    )
    assert (image_processor["min_pixels"], image_processor["max_pixels"]) == (4_096, 1_843_200)
    assert image_processor["size"] == {"shortest_edge": 4_096, "longest_edge": 1_843_200}
    tokenizer = Tokenizer.from_file(str(ROOT / "demo" / "model" / "tokenizer.json"))
    ids = tokenizer.get_vocab()
    assert yes_no == {"true_token_id": ids["yes"], "false_token_id": ids["no"]}
    tokens = {
        name: f"<|{name.removesuffix('_token_id')}|>" for name in config if "_token_id" in name
    }
    tokens |= {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    assert {name: config[name] for name in tokens} == {
        name: ids[each] for name, each in tokens.items()
    }
    text = config["text_config"]
    named = {"bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>"}
    assert {name: text[name] for name in named} == {name: ids[each] for name, each in named.items()}
    assert len(ids) <= text["vocab_size"] < len(ids) + 64
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    assert {special["pad_token"], *special["additional_special_tokens"]} == added


@pytest.mark.parametrize(
    ("peer", "extra", "sentence"),
    [
        ("official", {}, "give the path of your copy of qwen3_vl_reranker.py by --official"),
        ("official", {"official": "/nowhere.py"}, "there is no official script at /nowhere.py"),
        ("sentence_transformers", {}, "sentence_transformers is not installed here"),
        ("vllm", {}, "vllm is not installed here"),
    ],
)
def test_a_peer_says_what_it_lacks(peer, extra, sentence):
    """Without site-packages: no library is there, and none is imported before it is looked for."""
    command = [sys.executable, "-S", "-m", "bench.peers", CLASSES[peer]]
    settings = json.dumps({"model": str(TINY), "extra": extra})
    answer = subprocess.run(
        [*command, settings], cwd=ROOT, capture_output=True, text=True, input="", timeout=60
    )
    assert json.loads(answer.stdout) == {"error": sentence}
