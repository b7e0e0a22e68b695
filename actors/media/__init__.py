"""Media to pixels: images and videos decoded, and resized as the official preprocessing does."""
