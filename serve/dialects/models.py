"""What the server says of its model, to the clients that ask before they send a request."""

from typing import Any

from shardrank.serve.dialects.answers import Naming
from shardrank.serve.settings import ServeSettings


def model(naming: Naming) -> dict[str, Any]:
    """OpenAI's, with what Xinference's clients read beside it."""
    return {
        "id": naming.model,
        "object": "model",
        "created": 0,
        "owned_by": "shardrank",
        "model_name": naming.model,
        "model_type": "rerank",
        "model_ability": ["rerank"],
    }


def infinity_model(naming: Naming) -> dict[str, Any]:
    """Infinity's client takes no other owner, and no model without `stats`."""
    own = {"owned_by": "infinity", "backend": "torch", "capabilities": ["rerank"], "stats": {}}
    return model(naming) | own


def info(
    naming: Naming, settings: ServeSettings, max_tokens: int, device_type: str
) -> dict[str, Any]:
    """TEI's /info. max_tokens: of a whole pair."""
    dtype = settings.reranker.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device_type == "cuda" else "float32"
    return {
        "model_id": naming.model,
        "model_sha": settings.reranker.revision,
        "model_dtype": dtype,
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_input_length": max_tokens,
        "max_client_batch_size": settings.limits.max_documents,
        "auto_truncate": True,
        "tokenization_workers": settings.num_preparing,
        "version": naming.version,
    }
