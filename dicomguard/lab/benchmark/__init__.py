"""Benchmarks as cells: each a function of named inputs, computed once, in parallel, and kept under their hash."""
