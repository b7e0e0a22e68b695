"""The text model's designed initialisation: a sketch of "is the document in the query?".

From random weights the tiny model does not leave chance level in minutes. So a few weights are set
by hand, and all of them are trained on afterwards. Layer 0 tags the tokens after `<Query>:` and
after `<Document>:`. In layer 1 a document token attends to query tokens of equal content (queries
and keys are the same projection, the tag's sign turned) or else to a sink. Layer 2 brings what was
found to the last token, where "yes" and "no" read it.
"""

import torch
from checkpoint import HEAD_DIM
from tokenizers import Tokenizer
from transformers import Qwen3VLForConditionalGeneration

CONTENT = 80  # dimensions 0 to 79 of the residual stream: what a token means
HALF = CONTENT // 2  # each of the two key-value heads compares one half
QUERY_MARK, DOCUMENT_MARK, SINK, IN_QUERY, IN_DOCUMENT, FOUND, RESULT, ONE = range(120, 128)

# Places in a head that turn so slowly (rope_theta 5e6) that distance hardly matters, slowest first.
SLOW = [place for pair in range(31, 8, -1) for place in (pair, pair + HEAD_DIM // 2)]
NORM = 8.0  # what RMSNorm multiplies a token of length sqrt(2) by, at 128 dimensions


def set_up(model: Qwen3VLForConditionalGeneration, tokenizer: Tokenizer) -> None:
    """Sets the text model's hand-made weights over a small random rest."""
    text = model.model.language_model
    with torch.no_grad():
        for parameter in text.layers.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.01)
        embeddings = text.embed_tokens.weight
        embeddings.normal_(0, 0.01)
        embeddings[:, 112:] = 0
        embeddings[:, ONE] = 1
        embeddings[tokenizer.token_to_id("Query"), QUERY_MARK] = 1
        embeddings[tokenizer.token_to_id("<Document"), DOCUMENT_MARK] = 1
        embeddings[tokenizer.token_to_id("system"), SINK] = 1
        for word, sign in (("yes", 1), ("no", -1)):
            row = embeddings[tokenizer.token_to_id(word)]
            row.zero_()
            row[RESULT], row[ONE] = 0.5 * sign, -0.25 * sign
        tag(text.layers[0].self_attn)
        match(text.layers[1].self_attn)
        gather(text.layers[2].self_attn)


def slot(head: int, number: int) -> int:
    """Row of a projection: the `number`th slow place of a head."""
    return head * HEAD_DIM + SLOW[number]


def sharpen(attention: torch.nn.Module, gain: float) -> None:
    attention.q_norm.weight.fill_(gain)
    attention.k_norm.weight.fill_(gain)


def move(
    attention: torch.nn.Module, head: int, source: dict[int, float], target: dict[int, float]
) -> None:
    """The key-value head carries sum(source) into `target`, through both of its query heads."""
    lane = head * HEAD_DIM
    attention.v_proj.weight[lane] = 0
    for dimension, weight in source.items():
        attention.v_proj.weight[lane, dimension] = weight / NORM
    for query_head in (2 * head, 2 * head + 1):
        column = query_head * HEAD_DIM
        attention.o_proj.weight[:, column] = 0
        for dimension, weight in target.items():
            attention.o_proj.weight[dimension, column] = weight / 2


def tag(attention: torch.nn.Module) -> None:
    sharpen(attention, 1.5)
    attention.q_proj.weight.mul_(0.1)
    attention.k_proj.weight.mul_(0.1)
    for head, mark in ((0, QUERY_MARK), (1, DOCUMENT_MARK)):
        for query_head in (2 * head, 2 * head + 1):
            attention.q_proj.weight[slot(query_head, 0), ONE] = 1
        attention.k_proj.weight[slot(head, 0), mark] = 4
        attention.k_proj.weight[slot(head, 1), ONE] = 1
    move(attention, 0, {QUERY_MARK: 1}, {IN_QUERY: 1})
    move(attention, 1, {DOCUMENT_MARK: 1}, {IN_DOCUMENT: 1, IN_QUERY: -1})


def match(attention: torch.nn.Module) -> None:
    """Scores: equal content 0.8, other query content 0.4, the sink 0.6, the document itself 0."""
    sharpen(attention, 1.6)
    attention.q_proj.weight.mul_(0.2)
    attention.k_proj.weight.mul_(0.2)
    for head in range(2):
        for place in range(HALF):
            attention.k_proj.weight[slot(head, place), head * HALF + place] = 1
        attention.k_proj.weight[slot(head, HALF), IN_QUERY] = 0.7
        attention.k_proj.weight[slot(head, HALF), IN_DOCUMENT] = -0.7
        attention.k_proj.weight[slot(head, HALF + 1), SINK] = 0.75
        for query_head in (2 * head, 2 * head + 1):
            for place in range(HALF):
                attention.q_proj.weight[slot(query_head, place), head * HALF + place] = 1
            attention.q_proj.weight[slot(query_head, HALF), IN_DOCUMENT] = 0.7
            attention.q_proj.weight[slot(query_head, HALF + 1), ONE] = 0.75
        move(attention, head, {IN_QUERY: 1}, {FOUND: 0.5})


def gather(attention: torch.nn.Module) -> None:
    sharpen(attention, 1.3)
    attention.q_proj.weight.mul_(0.2)
    attention.k_proj.weight.mul_(0.2)
    for head in range(2):
        for query_head in (2 * head, 2 * head + 1):
            attention.q_proj.weight[slot(query_head, 0), ONE] = 1
        attention.k_proj.weight[slot(head, 0), IN_DOCUMENT] = 0.5
        attention.k_proj.weight[slot(head, 0), FOUND] = 2.0
        attention.k_proj.weight[slot(head, 1), ONE] = 1
        move(attention, head, {FOUND: 1}, {RESULT: 1.5})
