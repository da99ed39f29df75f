"""settings.json: what notebook 06 chose for this machine, read by the command line."""

import json
from pathlib import Path

from helpers import UserError

SETTINGS = {"threads": int, "instances": int, "batch_sizes": list, "knobs": dict, "notes": dict}


def read_settings(path):
    """What notebook 06 chose: threads, instances, batch_sizes, knobs (variables), notes.

    All are optional; `notes` is not used. Raises UserError for a file that is something else.
    """
    try:
        settings = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as settings: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings: an object with {', '.join(SETTINGS)}.")
    for name, value in settings.items():
        if name not in SETTINGS:
            raise UserError(
                f"{path}: there is no setting '{name}'. There are: {', '.join(SETTINGS)}."
            )
        if not _fits(name, value):
            raise UserError(f"{path}: {json.dumps(value)} will not do for '{name}'.")
    return settings


def _fits(name, value):
    """Whether a value is of the setting's type, its numbers positive, its variables text."""
    if type(value) is not SETTINGS[name]:
        return False
    if name == "knobs":
        return all(type(text) is str for text in value.values())
    numbers = {"batch_sizes": value, "notes": [1]}.get(name, [value])
    return bool(numbers) and all(type(number) is int and number > 0 for number in numbers)
