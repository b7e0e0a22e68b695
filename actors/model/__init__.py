"""The network: a checkpoint's weights, and the vision tower and decoder that run them."""
