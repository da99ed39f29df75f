"""Thin helpers behind the notebooks; importing this package does not import TensorFlow.

It does set the log levels that TensorFlow and ITEX read when they are imported later: their
start-up lines are no news to a reader. Values that are set already are left alone.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("ITEX_CPP_MIN_LOG_LEVEL", "2")


class UserError(RuntimeError):
    """A failure that the reader can act on: the message says what happened and what to do next."""
