"""Callers, workers and their broker in one thread, with a time of their own that passes only when it is told to.

What runs is the code that is in use: the clients' caller, the worker's consumer, sessions that reconnect, and the
broker in memory. Made up are the loops that they live on, the clock, the wires to the broker, and what the tasks do.
"""
