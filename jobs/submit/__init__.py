"""Commands of ours sent to a Ray cluster from another machine, and followed from there."""
