"""./run_all.sh --contribute: this machine's result into results/, whole, resolved, without names.

An earlier full result in the output folder is taken where nothing is lacking: it is of this commit,
of this machine as it is now and of the same versions, complete and resolved. Else it is measured.
"""

import json
import os
from pathlib import Path

from helpers import UserError, files, machine
from helpers.machines import RESULTS, sharing

ROOT = RESULTS.parent
BOOKS = {"alexnet": ["02_", "03_", "04_"], "resnet50": ["05_"]}  # what measures each, in order


def run(options, stems, run_notebooks):
    """All of --contribute; gives the status.

    `stems` are the notebooks that the words have chosen, `run_notebooks` is the runner's main.
    """
    try:
        models = asked_for(options, stems)
        output = Path(options.output or ROOT / "outputs").absolute()
        here, software = machine.describe(), machine.software()
        refuse(software)
        open_ = [model for model in models if why_not(output, model, here, software)]
        if open_:
            status = run_notebooks(arguments(options, stems, open_, output))
            if status:
                return status
        return max([contribute(output, model, here, software) for model in models])
    except UserError as error:
        print(f"Not contributed: {error}")
        return 1


def asked_for(options, stems):
    """The models whose measuring notebook is among those chosen; UserError where none is."""
    if options.quick:
        raise UserError("a contribution is measured on full settings. Leave out --quick.")
    models = [
        model for model, books in BOOKS.items() if any(stem.startswith(books[-1]) for stem in stems)
    ]
    if not models:
        raise UserError(
            f"none of {', '.join(stems)} measures a network to be compared. Say --contribute for "
            f"all, or --contribute {' or --contribute '.join(BOOKS)}."
        )
    return models


def refuse(software):
    """Raise UserError before anything is measured where no result could be contributed."""
    commit = software["commit"]
    if not commit:
        raise UserError(
            "this is no git checkout, so nobody could say which code measured. Clone the package."
        )
    if commit.endswith("+"):
        raise UserError(
            "files of the package are changed here, so the commit does not say what measured. "
            "Commit them, or put them aside with git stash."
        )
    if not os.access(RESULTS if RESULTS.exists() else ROOT, os.W_OK):
        raise UserError(f"{RESULTS} cannot be written. Use a checkout of your own.")


def why_not(output, model, here, software):
    """Why the result that is there is not taken (and printed); empty where it is, or none is."""
    path = output / model / "result.json"
    if not path.exists():
        return [f"there is no {path}"]
    reasons = sharing.lacking(_read(path), here, software)
    for reason in reasons:
        print(f"{path} is not taken: {reason}.")
    return reasons


def _read(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def arguments(options, stems, models, output):
    """What the runner is called with to measure these models."""
    wanted = tuple(book for model in models for book in BOOKS[model])
    pairs = [word for pair in options.parameter for word in ("-p", *pair)]
    return [*(stem for stem in stems if stem.startswith(wanted)), "--output", str(output), *pairs]


def contribute(output, model, here, software):
    """Write one model's result into results/, or say what is lacking; gives the status."""
    path = output / model / "result.json"
    result = _read(path)
    reasons = sharing.lacking(result, here, software)
    if reasons:
        print(f"Not contributed: {path} is not fit for it:")
        print("\n".join(f"- {reason}." for reason in reasons))
        return 1
    clean = sharing.anonymous(result)
    target, there = place(sharing.file_name(clean), clean)
    if there:
        print(f"{model}: this result is there already: {target}")
        return 0
    files.write_json(target, clean)
    print(
        f"{model}, measured {clean['created']}: {target}\nLook at it, add it with git, and make "
        "notebook 09 again: python tests/refresh.py 09. results/README.md says more."
    )
    return 0


def place(name, result):
    """(a path in results/ under which no other result lies, whether this very one lies there)."""
    stem, number = name.removesuffix(".json"), 1
    while True:
        path = RESULTS / (name if number == 1 else f"{stem}_{number}.json")
        if not path.exists():
            return path, False
        if _read(path) == json.loads(json.dumps(result)):
            return path, True
        number += 1
