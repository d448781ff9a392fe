"""Benchmarks: ``make bench`` starts crew and what people compare it with, and writes README.md."""
