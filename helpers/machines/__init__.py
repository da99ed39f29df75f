"""Many results, one comparison: a table, figures, a page, and what they show in sentences.

`read` reads files and folders, `groups` says which results may stand side by side. The command line
is `python -m helpers.machines`.
"""

from helpers.machines import drawing, lessons, page, table
from helpers.machines.grouping import chosen, groups
from helpers.machines.reading import Files, read

__all__ = ["Files", "chosen", "drawing", "groups", "lessons", "page", "read", "table"]
