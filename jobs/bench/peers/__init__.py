"""One file an implementation that is measured; each runs as a process of its own."""
