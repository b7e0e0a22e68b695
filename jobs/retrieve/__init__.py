"""The first stage: each query's nearest vectors, as a run for the reranker."""
