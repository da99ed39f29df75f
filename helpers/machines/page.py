"""The page: every group with its sentences, figures and tables, self-contained."""

import base64
import io
from pathlib import Path

import jinja2

from helpers import files
from helpers.machines import drawing, lessons, table

TEMPLATES = Path(__file__).parent
DRAWN = 4  # groups that get figures, the largest; every group has its tables


def figures_of(group, names=(), by="throughput", sizes=()):
    """{name of a PNG: (its bytes, alt text)} at the largest of the batch sizes asked for."""
    size = quoted(group, sizes)
    made = {
        "speed": drawing.draw(group, size, "speed", names, by),
        "ratio": drawing.draw(group, size, "ratio", names, by),
        "travel": drawing.draw_travel(group, size),
    }
    found = {}
    for name, pair in made.items():
        if pair:
            buffer = io.BytesIO()
            pair[0].savefig(buffer, format="png", dpi=100)
            found[f"{group.key['model']}_{name}.png"] = buffer.getvalue(), pair[1]
    return found


def quoted(group, sizes=()):
    """The batch size at which figures and sentences stand: the largest measured and asked for."""
    return max(size for size in group.sizes if not sizes or size in sizes)


def sections(groups, names=(), by="throughput", sizes=()):
    """What the page says of each group, as dicts for the template."""
    for place, group in enumerate(groups):
        drawn = figures_of(group, names, by, sizes) if place < DRAWN else {}
        yield {
            "title": group.title,
            "mixture": group.mixture,
            "kinds": table.kinds_line(group.entries),
            "lessons": lessons.lessons(group, quoted(group, sizes)),
            "instances": table.instances_line(group),
            "figures": drawn,
            "head": table.head(group, names),
            "tables": [
                (size, table.lines(group, size, names, by))
                for size in group.sizes
                if not sizes or size in sizes
            ],
        }


def write(folder, sections, general=(), left_out=()):
    """Write <folder>/index.html and the figures beside it, each whole; gives the page's path.

    `general` are sentences on all of it, `left_out` those on the files that were not read. Raises
    UserError when the folder cannot be written.
    """
    folder, images = Path(folder), {}
    for number, section in enumerate(sections, 1):
        for name, (image, alt) in section["figures"].items():
            images.setdefault(number, []).append((base64.b64encode(image).decode(), alt))
            with files.whole(folder / f"{number}_{name}") as part:
                part.write_bytes(image)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    text = environment.get_template("page.html.jinja").render(
        sections=sections, images=images, general=general, left_out=left_out
    )
    with files.whole(folder / "index.html") as part:
        part.write_text(text, encoding="utf-8")
    return folder / "index.html"
