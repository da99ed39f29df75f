"""Files that are either whole or absent."""

import contextlib
import errno
import hashlib
import inspect
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


def made_from(path, parts, make):
    """`path`, made by calling `make()` unless it is there, as it was made, from the same `parts`.

    `parts` are whatever the file depends on: paths stand for the content of the file, modules and
    functions for their source, arrays for their values; the rest has to have a repr that tells it.
    `<path>.json` beside it holds the digest of these and of the file.
    """
    path = Path(path)
    record = path.with_name(path.name + ".json")
    origin = hashlib.sha256("".join(map(_digest, parts)).encode()).hexdigest()
    try:
        if json.loads(record.read_text()) == {"made_from": origin, "sha256": sha256(path)}:
            return path
    except (OSError, ValueError):  # never made, or not to the end
        pass
    make()
    write_json(record, {"made_from": origin, "sha256": sha256(path)})
    return path


def _digest(part):
    if isinstance(part, Path):
        return sha256(part)
    if inspect.ismodule(part) or inspect.isroutine(part):
        part = inspect.getsource(part)
    if hasattr(part, "tobytes"):  # an array, whose repr leaves values out
        part = (str(part.dtype), part.shape, hashlib.sha256(part.tobytes()).hexdigest())
    return hashlib.sha256(repr(part).encode()).hexdigest()
