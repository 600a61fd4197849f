"""Silent corruption: a workspace whose bucket or cache rots, and what checks and reads make of it.

The short form runs with the tests; `python -m tests.rot --trials 1000` is the long one.
"""
