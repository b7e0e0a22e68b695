"""The reranker's prompt, its tokenizer, and where a prompt can be cut."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

# Qwen's 14 special tokens, in its order.
SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".'
)
INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."
PREFIX = (
    f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<Instruct>: {INSTRUCTION}<Query>:"
)
MIDDLE = "\n<Document>:"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
NUM_VISUAL_TOKENS = 4  # of one 64x64 frame pair

# As Qwen's, but marks belong to words: with \p{L}+ alone Hindi and Thai names fall to pieces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Side:
    """A query or a document: videos (two frame pairs each), images in the visual bank, a text."""

    videos: tuple[tuple[int, int], ...] = ()
    images: tuple[int, ...] = ()
    text: str | None = None

    @property
    def visuals(self) -> tuple[int, ...]:
        return (*(pair for video in self.videos for pair in video), *self.images)

    def prompt(self) -> str:
        """Videos, then images, then the text."""
        block = "<|vision_start|>{}<|vision_end|>"
        image = block.format("<|image_pad|>" * NUM_VISUAL_TOKENS)
        pair = block.format("<|video_pad|>" * NUM_VISUAL_TOKENS)
        video = f"<0.2 seconds>{pair}<1.2 seconds>{pair}"  # at 2 frames a second
        return video * len(self.videos) + image * len(self.images) + (self.text or "")


def train_tokenizer(names: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE over the prompt and the names, so that most words are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    plain = f"system\n{SYSTEM}\nuser\n<Instruct>: {INSTRUCTION}<Query>:\n<Document>:\nassistant\n"
    timed = "<0.2 seconds><1.2 seconds>"
    tokenizer.train_from_iterator([*[plain, timed, "yes", "no"] * 60, *names, *names], trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )
    return tokenizer


@lru_cache(maxsize=100_000)
def encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


def query_ids(tokenizer: Tokenizer, query: Side) -> tuple[int, ...]:
    """Ids of everything up to the document."""
    return encode(tokenizer, PREFIX + query.prompt() + MIDDLE)


def document_ids(tokenizer: Tokenizer, document: Side) -> tuple[int, ...]:
    """Ids of the document and the suffix; raises ValueError if a token crosses the cut."""
    head = encode(tokenizer, PREFIX + MIDDLE)
    whole = encode(tokenizer, PREFIX + MIDDLE + document.prompt() + SUFFIX)
    if whole[: len(head)] != head:
        raise ValueError(f"a token crosses from the prompt into the document {document.text!r}")
    return whole[len(head) :]
