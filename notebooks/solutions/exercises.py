"""What the solutions share, and a way to run all of them.

python solutions/03_quantize_alexnet.py 1 3    exercises 1 and 3 of notebook 03
python solutions/exercises.py                  of every notebook those that take seconds

Both take --output DIR, the folder that the notebooks wrote to; default: outputs/ of the checkout.
"""

import argparse
import re
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the folder that holds helpers/
from helpers import UserError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def slow(why):
    """Mark a solution that is run only when its number is given, and say why."""

    def mark(function):
        function.slow = why
        return function

    return mark


def made(path, notebook):
    """A file that a notebook leaves; UserError where it has not been run."""
    if not Path(path).exists():
        raise UserError(f"There is no {path}. Run notebook {notebook} first, or give --output.")
    return path


def main(file, names):
    """The command line of a file of solutions; `names` are its globals."""
    parser = argparse.ArgumentParser(description=names["__doc__"])
    parser.add_argument("numbers", type=int, nargs="*", help="default: those that take seconds")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs", metavar="DIR")
    options = parser.parse_args()
    try:
        run(Path(file).stem, names, options.output.resolve(), options.numbers)
    except UserError as error:
        sys.exit(f"error: {error}")


def run(title, names, output, numbers=()):
    """Run the functions exercise_1, exercise_2, … that are asked for."""
    known = {int(name[9:]): names[name] for name in names if re.fullmatch(r"exercise_\d+", name)}
    if unknown := set(numbers) - set(known):
        raise UserError(
            f"{title} has no exercise {min(unknown)}; it has {min(known)} to {max(known)}."
        )
    for number in numbers or known:
        why = getattr(known[number], "slow", None)
        skipped = ", not run" if why and not numbers else ""
        question = known[number].__doc__.splitlines()[0]
        print(f"{title}, exercise {number}{skipped}: {question}")
        if skipped:
            print(f"  it {why}; give its number to run it")
        else:
            known[number](output)


if __name__ == "__main__":
    for path in sorted(HERE.glob("[0-9]*.py")):
        arguments = sys.argv
        sys.argv = [str(path), *arguments[1:]]
        runpy.run_path(str(path), run_name="__main__")
        sys.argv = arguments
