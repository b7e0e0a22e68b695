"""The online endpoint on Ray Serve: every rerank client, on the reranker that the job uses."""
