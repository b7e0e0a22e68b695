"""The benchmark: ours against other implementations, on checkpoints and workloads of its own."""
