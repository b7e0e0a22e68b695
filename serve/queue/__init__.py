"""The queue: which pairs of which requests are scored together, and who has to wait."""
