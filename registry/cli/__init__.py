"""The command line: a thin layer over the workflows, one module per command.

A group prints its help from the table in ``commands``, and imports a command's module when that command
runs. A module therefore imports what it needs at its top; only what needs torch, the Hub's client or rich is
imported where it is used, because an install may lack it, or the environment may make its import fail.
"""
