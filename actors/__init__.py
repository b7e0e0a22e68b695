"""The reranker: pairs in, scores out. Knows torch and transformers; knows no Ray and no HTTP."""
