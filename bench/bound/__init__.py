"""The computed bound: the FLOPs that a workload needs and that others compute, and what they take
at the rates of this machine and of a GPU's data sheet.
"""
