"""What is done to the sides of a request before they are queued: media fetched, texts cut."""
