"""Verified download of the published ResNet50 models."""

import json
import os
import sys
from pathlib import Path

import requests
from tqdm import tqdm

from helpers import UserError, files, graphs

PUBLISHED_URL = "https://storage.googleapis.com/intel-optimized-tensorflow/models/v1_8"
PUBLISHED = {
    "fp32": "resnet50_fp32_pretrained_model.pb",
    "int8": "resnet50_int8_pretrained_model.pb",
}
CONNECT_SECONDS, STALL_SECONDS = 5, 20
CHUNK = 1 << 18


def published(folder, url=None, progress=True):
    """Paths of the published FP32 and INT8 ResNet50 in `folder`, downloaded where missing.

    `url` is the address of the folder that holds the two files: the publisher's by default, or
    the environment variable RESNET50_URL (a mirror for a workshop). No checksum is published, so
    the sha256 of each file is recorded when it first arrives (`checksums.json` beside it) and
    verified ever after. Raises UserError, with the next step, for every way this can fail.
    """
    folder = Path(folder)
    url = url or os.environ.get("RESNET50_URL") or PUBLISHED_URL
    return {
        kind: fetch(f"{url.rstrip('/')}/{name}", folder / name, progress)
        for kind, name in PUBLISHED.items()
    }


def fetch(url, path, progress=True):
    """The file at `path`: verified where it is there already, downloaded from `url` otherwise.

    A download that was cut short goes on where it stopped, if the server says that it still has
    the same file (see `_receive`). The file gets its name only when it is a whole graph with one
    input and one output.
    """
    path = Path(path)
    record = path.with_name("checksums.json")
    known = json.loads(record.read_text()) if record.exists() else {}
    if path.exists():
        verify(path, known.get(path.name))
        return path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _receive(url, part, progress)
    except requests.exceptions.Timeout as error:
        raise _failed(url, f"no answer for {STALL_SECONDS} seconds", part) from error
    except requests.exceptions.HTTPError as error:
        raise _failed(url, f"the server says {error}") from error
    except requests.exceptions.RequestException as error:
        raise _failed(url, f"no connection ({type(error).__name__})", part) from error
    except OSError as error:
        if files.is_disk_full(error):  # what has arrived would only keep the disk full
            _discard(part)
        raise files.storage_error(path, error) from error
    try:
        graphs.find_signature(graphs.read_graph(part), path=url)
    except UserError as error:
        _discard(part)
        raise UserError(
            f"{url} is not the model it should be, and was not kept: {error}"
        ) from error
    checksum = files.sha256(part)
    if known.get(path.name, checksum) != checksum:
        _discard(part)
        raise UserError(
            f"{url} has changed since it was first downloaded (sha256 {checksum}) and was not "
            f"kept. If you trust the new file, delete {record} and run again."
        )
    files.write_json(record, {**known, path.name: checksum})
    part.rename(path)
    _validator(part).unlink(missing_ok=True)
    return path


def verify(path, checksum):
    """Raise UserError unless the file's sha256 is the recorded one."""
    if checksum is None:
        raise UserError(f"No checksum is recorded for {path}. Delete the file and run again.")
    if files.sha256(path) != checksum:
        raise UserError(
            f"{path} is not the file that was downloaded: its sha256 does not match the recorded "
            "one. Delete it and run again."
        )


def _failed(url, why, part=None):
    kept = ""
    if part and part.exists():
        if part.stat().st_size and _validator(part).exists():
            kept = "What has arrived is kept, and the next run goes on from there. "
        else:
            _discard(part)
    return UserError(
        f"{url} could not be downloaded: {why}. {kept}Try again, or set weights to 'random' (no "
        "network needed) or to a folder with the two files."
    )


def _validator(part):
    """The file beside a partial download that holds the ETag or date it was downloaded under."""
    return part.with_name(part.name + ".validator")


def _discard(part):
    for path in (part, _validator(part)):
        path.unlink(missing_ok=True)


def _receive(url, part, progress):
    """Download `url` into `part`, continuing after the bytes that are there.

    The rest is asked for with If-Range (RFC 9110, 13.1.5): a server whose file has changed since
    the first bytes came sends the whole new one, so that two versions are never spliced. Without
    a validator from then there is no telling, and the download starts over.
    """
    known = _validator(part).read_text() if _validator(part).exists() else ""
    start = part.stat().st_size if part.exists() and known else 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers.update({"Range": f"bytes={start}-", "If-Range": known})
    timeouts = (CONNECT_SECONDS, STALL_SECONDS)
    with requests.get(url, headers=headers, stream=True, timeout=timeouts) as answer:
        # 416: the part is as long as the file, or longer; otherwise a server that sends the rest
        # without having understood If-Range
        if start and (answer.status_code == 416 or not _goes_on(answer, start, known)):
            _discard(part)
            return _receive(url, part, progress)
        answer.raise_for_status()
        start = start if answer.status_code == 206 else 0
        if not start:
            _discard(part)
            _remember(part, answer)
        _store(answer, part, start, progress)


def _strong_validator(answer):
    """What If-Range can be asked with: a strong ETag, or else the file's date; '' without both."""
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")


def _remember(part, answer):
    validator = _strong_validator(answer)
    if validator:
        _validator(part).write_text(validator)


def _goes_on(answer, start, known):
    """Whether an answer to If-Range can be used: the whole file, or the rest of the known one."""
    if answer.status_code != 206:
        return True
    follows = answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
    return follows and _strong_validator(answer) in ("", known)


def _store(answer, part, start, progress):
    """Write the body of an answer into `part`, from byte `start` on."""
    length = answer.headers.get("Content-Length")
    total = int(length) + start if length else None
    bar = tqdm(
        total=total,
        initial=start,
        unit="B",
        unit_scale=True,
        desc=part.stem[:28],
        file=sys.stdout,
        ncols=78,
        mininterval=1,
        disable=not progress,
    )
    with open(part, "ab" if start else "wb") as file, bar:
        for chunk in answer.iter_content(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise requests.exceptions.ConnectionError("the transfer ended early")
