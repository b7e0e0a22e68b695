"""The models that the engine runs: what differs between them, a file each."""
