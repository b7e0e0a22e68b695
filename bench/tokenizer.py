"""A byte-level BPE tokenizer like Qwen's, trained on the benchmark's own words in a second."""

import random

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from bench.words import draw
from shardrank.actors.config import DEFAULT_INSTRUCTION
from shardrank.actors.prompt import SYSTEM

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
"""Qwen's, in its order."""
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's pre-tokenizer (tokenizer.json of Qwen2 to Qwen3-VL)."""

_VOCAB_SIZE = 3_000
_NUM_SENTENCES = 2_000
_NUM_PROMPTS = 500


def train_tokenizer() -> Tokenizer:
    """Always the same one. "yes" and "no" are one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB_SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    assert tokenizer.token_to_id("yes") is not None and tokenizer.token_to_id("no") is not None
    return tokenizer


def _corpus() -> list[str]:
    rng = random.Random("corpus")
    sentences = [" ".join(draw(rng, 20)) + " a." for _ in range(_NUM_SENTENCES)]
    prompt = f"{SYSTEM}\nuser\n<Instruct>: {DEFAULT_INSTRUCTION}<Query>:\n<Document>:NULL"
    times = ["<0.5 seconds>", "<12.5 seconds>"]
    return [*sentences, *[prompt, "yes", "no", "assistant\n", *times] * _NUM_PROMPTS]
