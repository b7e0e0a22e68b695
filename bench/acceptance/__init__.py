"""The steps of `python -m bench.accept`: each gives figures, or raises where one is wrong."""
