"""The work, cut into units: which pairs each has, in which order, and how they are read."""
