import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, images

from helpers import benchmark, models, quantization


def test_loader_gives_whole_batches():
    loader = quantization.CalibrationLoader(images(20), 8)
    shapes = [batch.shape for batch, _ in loader]
    assert shapes == [(8, 32, 32, 3)] * 2 and len(loader) == 2
    with pytest.raises(ValueError, match="do not fill"):
        quantization.CalibrationLoader(images(4), 8)


def test_int8_graph_is_quantized_and_close(graphs):
    layers = quantization.layers(models.read_graph(graphs["int8"]))
    assert [layer.op for layer in layers] == ["Conv2D", "Conv2D", "MatMul"]
    assert all(layer.int8 for layer in layers)
    x = images(64, seed=4)
    fp32 = models.FrozenGraph(graphs["fp32"]).predict(x)
    int8 = models.FrozenGraph(graphs["int8"]).predict(x)
    assert not np.array_equal(fp32, int8)
    assert benchmark.sqnr_db(fp32, int8) > 15


def test_fp32_graph_has_no_int8_layers(graphs):
    layers = quantization.layers(models.read_graph(graphs["fp32"]))
    assert len(layers) == 3 and not any(layer.int8 for layer in layers)


def test_quiet_logs_everything_and_restores(tmp_path, capfd):
    before = dict(os.environ)
    with quantization.quiet(tmp_path / "log"):
        print("from python")
        print("to stderr", file=sys.stderr)
        subprocess.run(["echo", "from a child"])
        os.environ["ITEX_REMAPPER"] = "0"
    print("after")
    assert dict(os.environ) == before
    log = (tmp_path / "log").read_text()
    assert "from python" in log and "to stderr" in log and "from a child" in log
    assert capfd.readouterr() == ("after\n", "")


def test_log_of_the_quantizer_is_kept(graphs):
    assert "Start to apply static_quant" in graphs["log"].read_text()
    assert not (ROOT / "nc_workspace").exists(), "INC wrote into the current folder"
