"""The page at the end of a run: index.html, and the executed notebooks as HTML beside it."""

import base64
import re
from pathlib import Path

import jinja2

from helpers import UserError, files
from helpers.benchmark import report
from helpers.figures import number

TEMPLATES = Path(__file__).parent

# nbconvert's page as it is, but with the alt text of figures, and without scripts that it would
# load from the network and that these notebooks do not use
NOTEBOOK = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block data_png -%}
<div class="jp-RenderedImage jp-OutputArea-output"><img alt="{{
  output | get_metadata('alt', 'image/png') | escape_html
}}" src="data:image/png;base64,{{ output.data['image/png'] | escape_html }}"></div>
{%- endblock -%}
"""


def write(output, books, failed=None):
    """Write <output>/index.html, whole and self-contained; gives its path.

    It shows every <output>/*/result.json with the figures beside it, whichever run or command
    wrote it; one that cannot be read is named in its place. `books` are dicts with stem, title,
    state and time; the executed copies below <output>/notebooks become HTML pages beside them.
    Raises UserError when the folder cannot be written.
    """
    output = Path(output)
    for book in books:
        copy = output / "notebooks" / f"{book['stem']}.ipynb"
        if copy.exists():  # or its kernel did not even start
            page(copy)
    results, unreadable = each_result(output, _section)
    text = _template("index.html.jinja").render(
        results=results,
        unreadable=unreadable,
        books=sorted(books, key=lambda book: book["stem"]),
        failed=failed,
    )
    with files.whole(output / "index.html") as part:
        part.write_text(text)
    return output / "index.html"


def each_result(output, show, since=0):
    """What `show(result, folder)` makes of each <output>/*/result.json not older than `since`.

    Gives (list of what `show` gave, list of sentences on the files that could not be shown).
    """
    shown, unreadable = [], []
    for path in sorted(Path(output).glob("*/result.json")):
        if path.stat().st_mtime < since:
            continue
        try:
            shown.append(show(report.read(path), path.parent))
        except UserError as error:
            unreadable.append(f"Left out: {error}")
        except Exception as error:  # anybody may have put it there; the others are shown still
            unreadable.append(
                f"Left out: {path} lacks something ({type(error).__name__}: {error})."
            )
    return shown, unreadable


def _template(name):
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["number"] = lambda value: "–" if value is None else number(value)
    return environment.get_template(name)


def _section(result, folder):
    """One result for the page: {"html", and what the page says of its machine and software}.

    Fields that came with later schemas (weights, kernels), and percentiles for which there were
    too few calls, may be missing.
    """
    html = _template("result.html.jinja").render(
        result=result,
        weights=result["settings"].get("weights"),
        conclusion=report.conclusion(result),
        figures=list(_figures(result, folder)),
        speeds=list(_speeds(result)),
        models=[_model(candidate, result) for candidate in result["candidates"]],
    )
    facts = {**result["machine"], **result["software"]}
    return {
        "html": html,
        "machine": report.where(result),
        "facts": [(name.replace("_", " "), _plain(value)) for name, value in facts.items()],
    }


def _plain(value):
    """A value of a result as text."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None else str(value)


def _figures(result, folder):
    for path in sorted(folder.glob("fp32_int8_*.png")):
        image = base64.b64encode(path.read_bytes()).decode()
        yield path.name, image, report.alt_text(path, result)


def _speeds(result):
    """A row for each batch size and candidate that was measured at it."""
    for size in result["settings"]["batch_sizes"]:
        for candidate in result["candidates"]:
            for batch in candidate["batches"]:
                if batch["batch_size"] == size:
                    yield {
                        "size": size,
                        "name": candidate["name"],
                        "fps": batch["throughput_fps"],
                        "ms": [batch["latency_ms"].get(k) for k in ("p50", "p90", "p99", "best")],
                        "ratio": report.ratio(result, candidate["name"], size),
                    }


def _model(candidate, result):
    """What became of one candidate: layers, kernels that ran, agreement, accuracy and size."""
    layers = candidate.get("layers")
    counts = [f"{entry['count']} {kind}" for kind, entry in candidate["kernels"].items()]
    return {
        "name": candidate["name"],
        "layers": f"{layers['int8']} of {layers['all']}" if layers else "–",
        "kernels": ", ".join(counts) or "not told",
        "agreement": (result.get("agreement") or {}).get(candidate["name"]),
        "accuracy": candidate.get("accuracy"),
        "bytes": candidate.get("bytes"),
    }


def page(copy):
    """Write an executed notebook as <same name>.html with its figures embedded."""
    from nbconvert import HTMLExporter

    text, _ = HTMLExporter(raw_template=NOTEBOOK).from_filename(str(copy))
    text = re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', text)  # pages link to pages
    text = text.replace('href="../README.md#the-map"', 'href="../index.html"')
    beside = r'<a href="(?:\.\./docs|solutions)/[^"]*">(.*?)</a>'  # is not beside the page
    text = re.sub(beside, r"\1", text)
    with files.whole(copy.with_suffix(".html")) as part:
        part.write_text(text)
