"""Runnable files: proofs that are too slow for the tests, tables, benchmarks. Run them from the repository root."""
