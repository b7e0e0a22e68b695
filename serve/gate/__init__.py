"""Who may ask, and how much: sizes of requests, API keys and their limits."""
