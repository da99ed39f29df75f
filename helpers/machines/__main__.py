"""The command line: python -m helpers.machines."""

import argparse
import sys
import textwrap
from pathlib import Path

from helpers import UserError
from helpers.machines import lessons, page, table
from helpers.machines.grouping import MIXABLE, chosen, groups
from helpers.machines.reading import read

NOTHING = 1  # the status where there was nothing to compare


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m helpers.machines",
        description="Put results of many machines side by side: a table, figures, a page, a CSV.",
        epilog="Status 0 where at least one result was read and shown; files that could not be "
        "read are named. Status 1 where there was none, or none of the choice.",
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="result files, or folders with *.json in them")
    add("--model", nargs="+", default=[], metavar="NAME", help="only these models")
    add("--batch-size", nargs="+", type=int, default=[], metavar="N", help="only these sizes")
    add("--candidate", nargs="+", default=[], metavar="NAME", help="only these: FP32 INT8")
    add("--kind", nargs="+", default=[], metavar="KIND", help="only these CPUs: AMX VNNI AVX2")
    add("--sort", choices=("throughput", "ratio", "machine"), default="throughput")
    add("--top", type=int, default=40, metavar="N", help="machines in a printed table (40)")
    add(
        *("--mix",),
        nargs="+",
        default=[],
        metavar="FIELD",
        help=f"let results differ in these and say so: {', '.join(MIXABLE)}",
    )
    add("--output", type=Path, default=Path("outputs/machines"), metavar="DIR")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse(arguments)
    try:
        return run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return NOTHING


def run(options):
    """Read, print, and write what the options of the command line ask for; gives the status."""
    known = read(options.paths)
    for sentence in known.left_out:
        print(f"Left out: {sentence}.")
    if known.others:
        print(f"Other JSON in the folders, no results: {known.others} files.")
    entries = chosen(known.entries, options.model, options.batch_size, options.kind)
    parts = groups(entries, options.mix)
    names = _known(options.candidate, parts)
    general = overview(known, entries, parts)
    print("\n".join(textwrap.fill(sentence, 110) for sentence in general))
    for group in parts:
        show(group, options, names)
    made = list(page.sections(parts, names, options.sort, options.batch_size))
    path = page.write(options.output, made, general, known.left_out)
    csv = table.write_csv(
        options.output / "machines.csv", entries, options.batch_size, options.candidate
    )
    print(f"\nThe same with figures: {path}\nEvery number: {csv}")
    return 0


def _known(names, parts):
    """The candidates asked for; UserError for one that no result has."""
    known = sorted({name for group in parts for name in group.names})
    for name in names:
        if name not in known:
            raise UserError(f"No result has a candidate '{name}'. There are: {', '.join(known)}.")
    return names


def overview(known, entries, parts):
    """Sentences on all of it: how many results, in how many groups, and what nobody measured."""
    told = [table.kinds_line(entries)]
    if len(parts) > 1:
        told.append(
            f"They are in {len(parts)} groups: only results of the same model, profile, threads "
            "and versions stand side by side. --mix lets some of these differ "
            f"({', '.join(MIXABLE)})."
        )
    if len(parts) > page.DRAWN:
        told.append(f"Figures are drawn of the {page.DRAWN} largest groups.")
    return [*told, *filter(None, [lessons.missing_amx(entries)]), *lessons.cores(parts)]


def show(group, options, names):
    """Print a group: its tables and what they show."""
    print(f"\n== {group.title}")
    if group.mixture:
        print(textwrap.fill(group.mixture, 110))
    for size in group.sizes:
        if not options.batch_size or size in options.batch_size:
            print(f"\nBatch {size}: images/s (per core), ratios [interval]")
            print(table.text(group, size, names, options.sort, options.top))
    print(table.instances_line(group))
    for sentence in lessons.lessons(group, page.quoted(group, options.batch_size)):
        print(textwrap.fill(f"- {sentence}", 110, subsequent_indent="  "))


if __name__ == "__main__":
    sys.exit(main())
