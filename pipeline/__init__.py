"""How the work runs: configuration, stage graph, store, manifest, console and command line."""

__version__ = "0.1.0"
