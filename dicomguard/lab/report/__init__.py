"""Plots and pages made of the benchmarks' results: for a radiologist to look at, for a statistician to check."""
