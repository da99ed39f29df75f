"""JupyterLab as the README starts it, driven in a real browser."""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request

import nbformat
import psutil
import pytest
from conftest import ROOT, needs, reuse_resnet50

BOOK = "05_benchmark_resnet50.ipynb"
SET = {
    'profile = "full"': 'profile = "quick"',
    "batch_sizes = [1, 32]": "batch_sizes = [1, 4]",
    "limit = None": "limit = 10",
}
FLAGS = [
    "--no-sandbox",  # or it does not start as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, whole):
    """A copy whose notebook 05 is set to the quick profile and smaller batches, as by a reader."""
    copy = tmp_path_factory.mktemp("lab")
    for name in ("helpers", "notebooks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    book = nbformat.read(copy / "notebooks" / BOOK, 4)
    for cell in book.cells:
        if "parameters" in cell.metadata.get("tags", []):
            for old, new in SET.items():
                assert old in cell.source
                cell.source = cell.source.replace(old, new)
        if cell.cell_type == "code":  # nothing stored may be taken for a result
            cell.outputs, cell.execution_count = [], None
    nbformat.write(book, copy / "notebooks" / BOOK)
    reuse_resnet50(whole, copy / "outputs")
    return copy


@pytest.fixture(scope="module")
def server(checkout, tmp_path_factory):
    """The README's command; gives what the server says of itself (url, token, pid, …)."""
    home = tmp_path_factory.mktemp("home")
    settings = home / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    # keep cells out of sight in the page, so that the test can read all of them
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    command = f"source {ROOT}/env_intel_tf/bin/activate && exec jupyter lab --no-browser --port=0"
    if os.geteuid() == 0:
        command += " --allow-root"
    process = subprocess.Popen(
        ["bash", "-c", command],
        cwd=checkout,
        env={
            **os.environ,
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60
    while not (running := list((home / "runtime").glob("jpserver-*.json"))):
        assert process.poll() is None and time.monotonic() < end, "Jupyter did not start"
        time.sleep(0.2)
    time.sleep(1)  # written, perhaps not yet whole
    yield json.loads(running[0].read_text())
    process.send_signal(signal.SIGTERM)
    process.wait(30)


def test_jupyter_listens_on_loopback_only(server):
    connections = psutil.Process(server["pid"]).net_connections()
    listening = {socket.laddr.ip for socket in connections if socket.status == psutil.CONN_LISTEN}
    assert listening and listening <= {"127.0.0.1", "::1"}


def test_jupyter_refuses_a_request_without_its_token(server):
    address = server["url"] + "api/contents"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(address)
    assert refused.value.code == 403
    with urllib.request.urlopen(f"{address}?token={server['token']}") as answer:
        assert answer.status == 200


@needs("chromium")
def test_run_all_in_the_browser(server, checkout, tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(60_000)
        page.goto(f"{server['url']}lab/tree/notebooks/{BOOK}?token={server['token']}")
        book = page.locator(".jp-NotebookPanel:visible")
        book.locator(".jp-CodeCell").first.wait_for()
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # before, Run does nothing
        page.get_by_role("button", name="No", exact=True).click()  # news of Jupyter?
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        book.get_by_text("All checks passed.", exact=True).wait_for(timeout=400_000)

        code = book.locator(".jp-CodeCell")
        prompts = code.locator(".jp-InputPrompt").all_inner_texts()
        assert prompts == [f"[{number}]:" for number in range(1, code.count() + 1)]
        assert book.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        text = book.inner_text()
        result = json.loads((checkout / "outputs" / "resnet50" / "result.json").read_text())
        assert "Traceback" not in text
        for candidate in result["candidates"]:
            ran = candidate["kernels"].items()
            counts = ", ".join(f"{entry['count']} {kind}" for kind, entry in ran)
            assert f"{candidate['name']}: layers executed: {counts}" in text
        speed = result["candidates"][-1]["batches"][-1]["throughput_fps"]
        assert "throughput(fps)" in text and f"{speed:.3g}" in text
        pictures = book.locator(".jp-OutputArea-output img")
        assert pictures.count() == 2
        for picture in pictures.all():
            picture.scroll_into_view_if_needed()
            assert picture.is_visible()
            assert picture.evaluate("image => image.naturalWidth") > 600
            box = picture.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 1280, "clipped"
        for output in book.locator(".jp-OutputArea-output pre").all():
            assert output.evaluate("pre => pre.scrollWidth <= pre.clientWidth + 1"), "cut off"
        for name, target in (("table", book.get_by_text("throughput(fps)")), ("figure", pictures)):
            target.first.scroll_into_view_if_needed()
            page.screenshot(path=tmp_path / f"{name}.png")  # for people to look at
        browser.close()
