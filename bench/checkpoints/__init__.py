"""Random checkpoints of Qwen3-VL's shapes: made here from a seed, never downloaded."""
