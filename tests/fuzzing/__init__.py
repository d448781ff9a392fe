"""Fuzzing: bytes become messages, heads and histories, and whatever they are, what the code promises must hold.

Each module of :mod:`tests.fuzzing.targets` has a function ``check`` that takes bytes and raises if a promise is broken.
``python -m tests.fuzzing`` lets a coverage-guided fuzzer look for such bytes; what it has kept of its search is in
``corpus``, and ``tests/test_fuzzing_corpus.py`` goes through it again on every run of the suite.
"""
