"""Experiments: algorithms side by side on the same problem, in one process, over the deployed protocol machines.

`problem` says what every algorithm is given and gives back; each algorithm is a file of its own; `compare` runs the
grid.
"""
