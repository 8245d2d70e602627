"""The command line: a thin layer over the workflows, one module per command.

A module here imports click and what is cheap; the catalog and everything heavier is imported inside
the command that needs it, so ``--help`` stays quick and no catalog command pays for torch.
"""
