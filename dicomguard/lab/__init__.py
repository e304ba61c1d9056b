"""Offline work: data sets, training, benchmarks. Nobody imports it but the command line and the scripts."""
