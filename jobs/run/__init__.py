"""A run of the job on Ray Data: units are read and prepared, scored by a pool, and written."""
