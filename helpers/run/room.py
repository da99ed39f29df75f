"""People side by side: output folders, shares of a machine, and the copies of a prepared room.

A room is what ./run_all.sh --prepare leaves: a checkout with its environment, whose outputs/ holds
the models. room.json in it is written last, so that nothing half-made is taken for a room.
"""

import contextlib
import fcntl
import getpass
import json
import os
import shutil
import sys
from pathlib import Path

from helpers import UserError, files, machine, topology
from helpers.run.preflight import MEMORY_GIB, ROOT

RECORD = "room.json"
MARK = ".learner"  # in a learner's copy
PEOPLE = "learners"  # in a room: the folders of those who choose none


def hold(output):
    """Make the output folder and hold it while the file given back is open; BlockingIOError."""
    output.mkdir(parents=True, exist_ok=True)
    file = open(output / ".lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def lock(output):
    """Hold the output folder for this run; a second run into it is refused."""
    try:
        return hold(output)
    except BlockingIOError:
        sys.exit(f"Another run is writing to {output}. Wait for it, or choose --output DIR.")
    except OSError as error:
        sys.exit(f"{output} cannot be written ({error.strerror}). Choose another: --output DIR.")


def record(room=ROOT):
    """What --prepare wrote at the end: {"profile", "files": {path: sha256}, …}, None elsewhere."""
    try:
        return json.loads((room / RECORD).read_text())
    except (OSError, ValueError):
        return None


def place(output=None, seat=None, room=ROOT):
    """(The output folder of this run, the file that holds it): nobody else writes there.

    `output` is what --output says. Each task of a batch system's array has a folder in it. In a
    prepared room the default is a folder of one's own, the first that no other run holds, and
    the folder gets the room's models. Raises UserError where the room is damaged.
    """
    prepared = record(room)
    task = os.environ.get("SLURM_ARRAY_TASK_ID") or os.environ.get("PBS_ARRAY_INDEX")
    if output or not prepared:
        output = output or room / "outputs"
        output = output / f"task_{task}" if task else output
        held = lock(output)
    else:
        output, held = own_folder(room, seat)
    if prepared:
        fill(output, prepared, room)
    if not seat and (free := machine.available_memory()) < MEMORY_GIB:  # `sit` says it of a seat
        print(
            f"Memory is short: {free:.1f} GiB are free, and a run may take {MEMORY_GIB:.0f}: the "
            "system may end a process of it. End other programs first."
        )
    return output, held


def own_folder(room, seat=None):
    """The first folder of this user, or seat, that no other run holds: (path, file)."""
    base = room / PEOPLE
    if not os.access(base, os.W_OK):
        base = Path.home() / "int8-tutorial"
    name = f"seat_{seat.partition('/')[0]}" if seat else getpass.getuser()
    for number in range(1, 1000):
        folder = base / (name if number == 1 else f"{name}_{number}") / "outputs"
        try:
            return folder, hold(folder)
        except BlockingIOError:
            continue
        except PermissionError:  # another user's, by the same name
            continue
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror}). Choose another: --output DIR."
            ) from error
    raise UserError(f"All folders in {base} are in use. Choose another: --output DIR.")


def fill(output, prepared, room=ROOT):
    """Give an output folder the room's models: each folder "models" that it does not have yet.

    A frozen graph is linked where the file system lets it, for it is only ever replaced as a
    whole; everything else is copied.
    """
    source = room / "outputs"
    for models in sorted({path for name in prepared["files"] for path in models_of(name)}):
        target = output / models
        if target.exists():
            continue
        intact(prepared, models, room)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for left in target.parent.glob(f".{target.name}.*.part"):  # of a run that was killed
                shutil.rmtree(left)
            shutil.copytree(source / models, part, copy_function=link_or_copy)
            os.rename(part, target)
        except (OSError, shutil.Error) as error:
            raise unwritten(target, error) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)


def unwritten(path, error):
    """The UserError for a folder that was not written; copytree gathers errors of many files."""
    reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or error
    return UserError(
        f"{path} was not written ({reason}). Free some space, or choose another folder."
    )


def models_of(name):
    """The outermost folder "models" in the path of a file of outputs/, if there is one."""
    parts = Path(name).parts[:-1]
    if "models" in parts:
        yield Path(*parts[: parts.index("models") + 1])


def intact(prepared, models, room):
    """Raise UserError unless the room's files below `models` are those that were prepared."""
    for name, digest in prepared["files"].items():
        if models in Path(name).parents:
            path = room / "outputs" / name
            if not path.exists() or files.sha256(path) != digest:
                raise UserError(
                    f"{path} is not as it was prepared. Let the room's owner run "
                    f"./run_all.sh --prepare {room} again."
                )


def link_or_copy(source, target):
    if source.endswith(".pb"):
        with contextlib.suppress(OSError):  # another file system, or not one's own file
            os.link(source, target)
            return target
    return shutil.copy2(source, target)


def serve(options, room=ROOT):
    """--copy or --reset; the exit status."""
    prepared = record(room)
    if not prepared:
        raise UserError(
            f"{room} is no prepared room (or not to its end): make one with ./run_all.sh "
            "--prepare DIR, then call DIR/run_all.sh."
        )
    if options.copy:
        folder = Path(os.path.abspath(options.copy))
        copy(folder, prepared, room)
        print(f"{folder} is yours: notebooks/ to change, outputs/ with the models.")
    else:
        folder = Path(os.path.abspath(options.reset))
        kept = reset(folder, prepared, room)
        print(f"{folder} is as at the beginning; what was in notebooks/ is in {kept.name}/.")
    print(" && ".join(opening(folder, room, options.seat)))
    return 0


def opening(folder, room, seat=None):
    """The commands that open a copy in Jupyter, as a list."""
    keep = ""
    if seat:
        own = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        memory = memory_share(int(seat.partition("/")[2]))
        keep = f'{topology.SEAT_MEMORY}="$$ {memory}" taskset -c {own} '
    return [
        f"cd '{folder}/notebooks'",
        f"source '{room}/env_intel_tf/bin/activate'",
        f"{keep}jupyter lab --no-browser{sockets()}",
    ]


def sockets():
    """The option that has kernels talk through files, as " --…": two may draw the same port.

    Empty where the path of such a file would have more than the 107 bytes that it may have.
    """
    from jupyter_core.paths import jupyter_runtime_dir

    longest = f"{jupyter_runtime_dir()}/kernel-{36 * 'x'}-ipc-5"
    return " --KernelManager.transport=ipc" if len(os.fsencode(longest)) <= 107 else ""


def copy(folder, prepared, room=ROOT):
    """Make a learner's folder, whole or not at all. Raises UserError where there is one."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        again = " It is a copy: --reset makes it as at the beginning." if is_copy(folder) else ""
        raise UserError(f"{folder} is there and not empty: choose another.{again}")
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        fill(part / "outputs", prepared, room)
        books(part / "notebooks", prepared, room)
        os.symlink(room / "helpers", part / "helpers")
        (part / MARK).write_text(f"{room}\n")
        os.rename(part, folder)
    except OSError as error:
        raise unwritten(folder, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def is_copy(folder):
    return (folder / MARK).is_file()


def books(folder, prepared, room):
    """The notebooks, on the settings that the room was prepared with."""
    shutil.copytree(room / "notebooks", folder)
    for path in folder.glob("*.ipynb"):
        path.chmod(0o644)
        text = path.read_text()
        path.write_text(
            text.replace(r"profile = \"full\"", rf"profile = \"{prepared['profile']}\"")
        )


def reset(folder, prepared, room=ROOT):
    """Make a copy as it was, but for the notebooks that were there: gives where those are now."""
    if not is_copy(folder):
        raise UserError(f"{folder} is no copy that --copy made: nothing was changed.")
    try:
        with hold(folder / "outputs"):
            numbers = (folder / f"notebooks_{number}" for number in range(1, 10_000))
            kept = next(path for path in numbers if not path.exists())
            if (folder / "notebooks").exists():  # or a reset was cut short
                os.rename(folder / "notebooks", kept)
            shutil.rmtree(folder / "outputs")
    except BlockingIOError as error:
        raise UserError(f"A run is writing to {folder / 'outputs'}: wait for it.") from error
    except OSError as error:
        raise unwritten(folder, error) from error
    fill(folder / "outputs", prepared, room)
    part = folder / ".notebooks.part"
    shutil.rmtree(part, ignore_errors=True)
    books(part, prepared, room)
    os.rename(part, folder / "notebooks")
    return kept


def sit(seat):
    """Keep this process, and all that it starts, to the cores and the memory of a seat "K/N".

    Says so where there are more seats than cores, or less memory than a run takes. Raises
    UserError for what is no seat.
    """
    if not seat:
        return
    number, slash, count = seat.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 0 < int(number) <= int(count)):
        raise UserError(f"--seat takes K/N, as 3/30 for the third of thirty, not '{seat}'.")
    cores, number, count = machine.cores(), int(number), int(count)
    own = share(cores, number, count)
    os.sched_setaffinity(0, {core.cpu for core in own})
    print(f"Seat {number} of {count}: {len(own)} of {len(cores)} cores.")
    if count > len(cores):
        print("There are more seats than cores: times and ratios of now mean little.")
    each = memory_share(count)
    os.environ[topology.SEAT_MEMORY] = f"{os.getpid()} {each}"
    if each < MEMORY_GIB:
        print(
            f"Memory is short: {each:.1f} GiB for each of {count} seats, {MEMORY_GIB:.0f} are "
            "needed. Where they do not suffice seats measure one after another: take fewer."
        )


def memory_share(count):
    """GiB for each of `count` seats, of all but one, which the system takes."""
    return round((machine.describe()["memory_gib"] - 1) / count, 2)


def share(cores, number, count):
    """The cores of seat `number` (from 1) of `count`; seats share one where there are too few."""
    each = len(cores) // count
    if not each:
        return [cores[(number - 1) % len(cores)]]
    return cores[(number - 1) * each : number * each]
