"""The online endpoint will live here, on the same `actors.Reranker` that the job uses."""
