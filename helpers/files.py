"""Files that are either whole or absent."""

import contextlib
import errno
import hashlib
import json
import os
from pathlib import Path

from helpers import UserError


@contextlib.contextmanager
def whole(path):
    """Give a temporary path beside `path`; rename it to `path` only if the block succeeds.

    An exception or Ctrl-C in the block removes the temporary file and leaves an older `path` as
    it was. Raises UserError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def is_disk_full(error):
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def storage_error(path, error):
    """The UserError that tells what an OSError on writing `path` means (or the error itself)."""
    if is_disk_full(error):
        return UserError(
            f"The disk is full: {path} was not written. Free some space, or choose another "
            "folder with --output."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"{path.parent} cannot be written. Choose another folder with --output.")
    return error


def write_json(path, value):
    with whole(path) as part:
        part.write_text(json.dumps(value, indent=1) + "\n")


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
