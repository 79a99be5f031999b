"""From a trained detector to the files that ship, and how they are held against it.

Nothing is imported here: `frs.export.engine` builds plans where there is no torch.
"""
