"""The page at the end of a run: index.html, and the executed notebooks as HTML beside it."""

import base64
import json
import re
from pathlib import Path

from helpers import figures, files, machine
from helpers.benchmark import report

TEMPLATE = Path(__file__).parent / "index.html.jinja"

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

    It shows every result.json below `output` with its figures, whichever run wrote it. `books` are
    dicts with stem, title, state and time; the executed copies below <output>/notebooks become
    HTML pages beside them. Raises UserError when the folder cannot be written.
    """
    import jinja2

    output = Path(output)
    for book in books:
        copy = output / "notebooks" / f"{book['stem']}.ipynb"
        if copy.exists():  # or its kernel did not even start
            page(copy)
    results = [json.loads(path.read_text()) for path in sorted(output.glob("*/result.json"))]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    helpers = {name: getattr(report, name) for name in ("conclusion", "number", "ratio")}
    text = environment.from_string(TEMPLATE.read_text()).render(
        results=results,
        books=sorted(books, key=lambda book: book["stem"]),
        failed=failed,
        summary=machine.summary,
        figures=lambda result: list(_figures(output / result["model"], result)),
        **helpers,
    )
    with files.whole(output / "index.html") as part:
        part.write_text(text)
    return output / "index.html"


def _figures(folder, result):
    for path in sorted(folder.glob("fp32_int8_*.png")):
        image = base64.b64encode(path.read_bytes()).decode()
        yield path.name, image, report.alt_text(path, result)


def page(copy):
    """Write an executed notebook as <same name>.html with its figures embedded."""
    from nbconvert import HTMLExporter

    text, _ = HTMLExporter(raw_template=NOTEBOOK).from_filename(str(copy))
    text = re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', text)  # pages link to pages
    with files.whole(copy.with_suffix(".html")) as part:
        part.write_text(text)
