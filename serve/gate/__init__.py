"""The gate before the routes: sizes of requests, API keys and their limits."""
