"""Many results, one comparison: a table, figures, a page, and what they show in sentences.

`read` reads files and folders, `groups` says which results may stand side by side. The command line
is `python -m helpers.machines`.
"""

from pathlib import Path

from helpers.machines import drawing, lessons, page, table
from helpers.machines.grouping import chosen, groups
from helpers.machines.reading import Files, read

RESULTS = Path(__file__).resolve().parents[2] / "results"  # the measured ones of this package

__all__ = ["RESULTS", "Files", "chosen", "drawing", "groups", "lessons", "page", "read", "table"]
