"""The benchmark: our mount beside a native directory and a null filesystem, in one run.

Not part of the package. Figures and how to read them: docs/performance.md.
"""
