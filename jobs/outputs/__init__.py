"""The output directory: score files, the manifest, the lease, and the proof that all is there."""
