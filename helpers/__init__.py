"""Thin helpers behind the notebooks; importing this package does not import TensorFlow.

It does set what TensorFlow and ITEX read later from the environment. Values that are set already
are left alone.
"""

import os

__version__ = "0.2.0"  # what changed: CHANGELOG.md

# Their start-up lines are no news to a reader
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("ITEX_CPP_MIN_LOG_LEVEL", "2")
# oneDNN's cache of reordered weights takes those of one partition of a graph for another's once
# some hundreds have been loaded: their keys collide. Only the measuring processes, which hold one
# graph each, switch it on (benchmark.environment)
os.environ.setdefault("_ONEDNN_CONSTANT_CACHE", "0")


class UserError(RuntimeError):
    """A failure that the reader can act on: the message says what happened and what to do next."""
