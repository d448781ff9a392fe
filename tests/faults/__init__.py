"""The fault suite: the real stack under constant load is broken, and every request is accounted for.

``make faults`` plays every scenario and prints a row for each; ``tests/test_faults.py`` plays the short ones with all
other tests. A scenario is a function in one of the modules here that gets a :class:`~tests.faults.stage.Stage`, starts
fronts and workers on it, breaks something under ``stage.load()``, and says by its decorator what callers may see of it
(``scenarios.py``). What it means to have lost nothing stands in ``account.py`` and is the same for all of them.
"""
