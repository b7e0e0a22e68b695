"""The input's tables: which form they have, and how their rows are found and read."""
