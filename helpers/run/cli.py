"""What run_all.sh runs: chooses notebooks, executes them with papermill and sums them up.

Only the standard library is imported at the top, and the syntax is that of Python 3.8: --help and
--list work with any Python that a system brings, before there is an environment.
"""

import argparse
import ast
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from helpers import UserError

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
ROOM = (  # docs/workshop.md has more on these
    ("--prepare", "DIR", "make all there that a room without network needs; may be repeated"),
    ("--copy", "FOLDER", "in a prepared room: a learner's own notebooks and models"),
    ("--reset", "FOLDER", "that copy again as it was; changed notebooks are kept beside it"),
    ("--seat", "K/N", "keep to the K-th of N equal shares of this machine's cores"),
)
PATHS = ("data", "data_path", "model", "results")  # parameters of notebooks that are paths


def notebooks(words=()):
    """The notebooks whose names contain one of the words (all without words), in reading order."""
    paths = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    return [path for path in paths if not words or any(word in path.stem for word in words)]


def about(path):
    """Title and expected time of a notebook, from its first cell: (title, time)."""
    cells = json.loads(path.read_text())["cells"]
    text = "".join(cells[0]["source"])
    title = re.search(r"^# (.+)$", text, re.M)
    minutes = re.search(r"\*\*Time\*\*: *(.+?)\.?(\n\n|\Z)", text, re.S)
    return title[1] if title else path.stem, " ".join(minutes[1].split()) if minutes else "?"


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="./run_all.sh",
        description="Run the notebooks headless and print one table of the results.",
        epilog="notebooks:\n" + listing(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", help="only notebooks whose name contains a word")
    parser.add_argument("--quick", action="store_true", help="small settings: minutes on 2 cores")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: outputs/")
    parser.add_argument(
        *("-p", "--parameter"),
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter of the chosen notebooks, as -p weights random; may be repeated",
    )
    parser.add_argument(
        "--contribute", action="store_true", help="this machine's full result into results/"
    )
    parser.add_argument("--list", action="store_true", help="show the notebooks and stop")
    say = {"action": "store_true", "help": "will it run here? in less than a minute: PASS or FAIL"}
    parser.add_argument("--check", **say)
    for option, metavar, text in ROOM:
        parser.add_argument(option, metavar=metavar, help=text)
    return parser.parse_args(arguments)


def given(pairs, chosen):
    """What -p says: {notebook's stem: {name: value}}, of each the parameters that it has.

    A value is a Python literal (0.5, None, "[1, 8]") or else text; a path is from the folder that
    run_all.sh is called from. Raises UserError for a name that none of the notebooks has, and for
    the two that have options of their own.
    """
    import papermill

    names = {path.stem: set(papermill.inspect_notebook(str(path))) for path in chosen}
    values = {}
    for name, text in pairs:
        if name in ("profile", "output"):
            raise UserError(f"The parameter '{name}' has an option: --quick, or --output DIR.")
        if not any(name in known for known in names.values()):
            known = ", ".join(sorted(set().union(*names.values()) - {"profile", "output"}))
            raise UserError(f"None of the notebooks has a parameter '{name}'. They have: {known}.")
        if name in PATHS and text:
            values[name] = os.path.abspath(text)
            continue
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    return {
        stem: {name: value for name, value in values.items() if name in known}
        for stem, known in names.items()
    }


def listing():
    rows = [(path.stem, *about(path)) for path in notebooks()]
    return "\n".join(f"  {stem:<24} {title}\n{'':26} {minutes}" for stem, title, minutes in rows)


def run_notebook(path, copy, parameters=None):
    """Execute a notebook into `copy` with papermill; progress on the screen where there is one."""
    import nbformat
    import papermill
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor
    from traitlets.config import Config

    # Files, not ports: two kernels that start at the same time on one machine may pick the same.
    # In a folder of their own, because the path of such a file may have no more than 107 bytes.
    sockets = tempfile.mkdtemp(prefix="kernel_")
    manager = {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}
    try:
        papermill.execute_notebook(
            str(path),
            str(copy),
            parameters=parameters,
            cwd=str(NOTEBOOKS),
            kernel_name="python3",
            progress_bar={"ncols": 78, "file": sys.stdout} if sys.stdout.isatty() else False,
            # or the kernel warns about its connection at every start and complains on Ctrl-C
            extra_arguments=["--IPKernelApp.log_level=50"],
            config=Config(KernelManager=manager),
        )
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
        if copy.exists():  # keep of each progress bar only its end
            book, _ = CoalesceStreamsPreprocessor().preprocess(nbformat.read(copy, 4), {})
            nbformat.write(book, copy)


def execute(path, copy, parameters):
    """Run one notebook into `copy`; None, or a text that tells where and why it failed."""
    from papermill.exceptions import PapermillExecutionError

    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        run_notebook(path, copy, parameters)
    except PapermillExecutionError as error:
        line = f"{error.ename}: {error.evalue}".strip().splitlines()[-1]
        if not line.startswith(error.ename):
            line = f"{error.ename}: {line}"
        return f"{path.stem}, cell {error.cell_index + 1}: {line}\nExecuted so far: {copy}"
    except Exception as error:  # the kernel died, or the copy could not be written
        last = (str(error).strip().splitlines() or [""])[-1]
        return f"{path.stem}: {type(error).__name__}: {last}\nExecuted so far: {copy}"
    return None


def summary(output, since):
    """Table and conclusion of every result.json that this run has written."""
    from helpers.benchmark import report
    from helpers.run import site

    def show(result, folder):
        figures = "\n".join(str(path) for path in sorted(folder.glob("fp32_int8_*.png")))
        return (
            f"{result['model']} ({result['profile']} profile)\n"
            f"{report.absolute_table(result)}\n"
            + "\n".join(report.times_table(result).splitlines()[1:])
            + f"\n{report.conclusion(result)}\n{figures}"
        )

    shown, unreadable = site.each_result(output, show, since)
    return "\n\n".join(shown + unreadable)


class States:
    """How each notebook ended that was ever run into an output folder: notebooks/states.json.

    {stem: {"state": "done" | "failed" | "not finished", "time": text}}. A notebook is written
    down as not finished before it starts, so that a run that was killed is told, too.
    """

    def __init__(self, output):
        self.path = output / "notebooks" / "states.json"
        try:
            self.known = json.loads(self.path.read_text())
        except (OSError, ValueError):
            self.known = {}

    def set(self, stem, state, time=""):
        from helpers import files

        self.known[stem] = {"state": state, "time": time}
        files.write_json(self.path, self.known)

    def earlier(self, books):
        """The notebooks that only earlier runs have executed, in the form of `books`."""
        ran = {book["stem"] for book in books}
        for path in notebooks():
            copy = self.path.with_name(path.name)
            if path.stem not in ran and (copy.exists() or path.stem in self.known):
                book = self.known.get(path.stem, {"state": "of unknown end", "time": ""})
                state = f"{book['state']}, in an earlier run"
                yield {"stem": path.stem, "title": about(path)[0], **book, "state": state}


def run_all(chosen, output, parameters, states):
    """Execute notebooks until one fails, print each as it comes: (books for the page, failure).

    `parameters` are those of each notebook, by its stem.
    """
    books, failed = [], None
    for index, path in enumerate(chosen, 1):
        title, minutes = about(path)
        print(f"[{index}/{len(chosen)}] {path.stem}: {title} ({minutes})", flush=True)
        start = time.monotonic()
        states.set(path.stem, "not finished")
        try:
            failed = execute(path, output / "notebooks" / path.name, parameters[path.stem])
        except KeyboardInterrupt:
            print(f"\nInterrupted in {path.stem}; no result was written for it.")
            raise
        book = {
            "state": "failed" if failed else "done",
            "time": f"{time.monotonic() - start:.0f} s",
        }
        states.set(path.stem, **book)
        books.append({"stem": path.stem, "title": title, **book})
        if failed:
            break
    return books, failed


def main(arguments=None):
    options = parse(arguments)
    if options.list:
        print(listing())
        return 0
    chosen = notebooks(options.words)
    unknown = [word for word in options.words if not notebooks([word])]
    if unknown:
        print(f"No notebook has '{unknown[0]}' in its name. There are:\n{listing()}")
        return 2
    if options.contribute:
        from helpers.run import contribute

        return contribute.run(options, [path.stem for path in chosen], main)
    output = Path(os.path.abspath(options.output or ROOT / "outputs"))
    if options.check:
        from helpers.run import preflight

        return preflight.check(output)
    # a batch system ends a job with SIGTERM, and a shell starts background jobs deaf to SIGINT:
    # both take the way out of Ctrl-C, so that children end, too
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    from helpers.run import prepare, room

    try:
        room.sit(options.seat)
        if options.prepare:
            return prepare.prepare(options)
        if options.copy or options.reset:
            return room.serve(options)
        output, held = room.place(options.output and output, options.seat)
    except UserError as error:
        print(f"Failed: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    with held:
        return headless(options, chosen, output)


def headless(options, chosen, output):
    """Run the chosen notebooks into a folder that is held, and sum up; the exit status."""
    from helpers.run import site  # not at the top: see above

    since = time.time()
    common = {"profile": "quick" if options.quick else "full", "output": str(output)}
    try:
        own = given(options.parameter, chosen) if options.parameter else {}
        parameters = {path.stem: common | own.get(path.stem, {}) for path in chosen}
        states = States(output)
        books, failed = run_all(chosen, output, parameters, states)
        print("\n" + "\n\n".join(filter(None, [summary(output, since), ""])))
        for book in books:
            print(f"{book['stem']:<26} {book['state']:<7} {book['time']:>8}")
        page = site.write(output, books + list(states.earlier(books)), failed)
        print(f"Executed notebooks: {output / 'notebooks'}\nAll of it on one page: {page}")
    except UserError as error:  # the disk is full, or a parameter that no notebook has
        failed = str(error)
    except KeyboardInterrupt:
        return 130
    if failed:
        print(f"\nFailed: {failed}")
    return 1 if failed else 0
