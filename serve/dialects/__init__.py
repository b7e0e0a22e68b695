"""What each client says and hears: requests, contents, answers and the OpenAPI document."""
