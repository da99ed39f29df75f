"""Around Intel Neural Compressor: calibration data, a quiet run, and what became INT8."""

import contextlib
import logging
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_DESCRIPTOR_2 = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115: open as long as INC is
LAYER_OPS = ("Conv2D", "DepthwiseConv2dNative", "MatMul")


class CalibrationLoader:
    """The data loader INC wants: iterates over (images, dummy labels) in whole batches.

    `images` has shape (N, …); a last batch that is not full is left out, and there has to be one
    full batch.
    """

    def __init__(self, images, batch_size=8):
        if len(images) < batch_size:
            raise ValueError(f"{len(images)} images do not fill one batch of {batch_size}.")
        self.images, self.batch_size = images, batch_size

    def __len__(self):
        return len(self.images) // self.batch_size

    def __iter__(self):
        for index in range(len(self)):
            start = index * self.batch_size
            yield self.images[start : start + self.batch_size], np.zeros(self.batch_size)


@contextlib.contextmanager
def quiet(log):
    """Send what INC, TensorFlow and their C++ libraries print to the file `log`.

    Restores the environment variables that INC changes, so that processes started later do not
    inherit them. What Python code in the block prints goes to the log, too.
    """
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    before, saved = dict(os.environ), [os.dup(1), os.dup(2)]
    logger = logging.getLogger("tensorflow")
    handlers = [one for one in logger.handlers if isinstance(one, logging.StreamHandler)]
    sys.stdout.flush()
    sys.stderr.flush()
    with open(log, "w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        streams = [handler.setStream(_DESCRIPTOR_2) for handler in handlers]
        try:
            with contextlib.redirect_stdout(_DESCRIPTOR_2), contextlib.redirect_stderr(_DESCRIPTOR_2):
                # INC reads calibration ranges back from sys.stderr as it was at INC's import, so
                # that has to be descriptor 2 itself; a notebook kernel's sys.stderr is not
                from neural_compressor.tensorflow.utils.model import TFConfig

                with tempfile.TemporaryDirectory(prefix="inc_") as workspace:
                    TFConfig.global_config["workspace_path"] = workspace  # not the current folder
                    yield log
        finally:
            _DESCRIPTOR_2.flush()
            for number, copy in enumerate(saved, 1):
                os.dup2(copy, number)
                os.close(copy)
            for handler, stream in zip(handlers, streams):
                handler.setStream(stream)
            os.environ.clear()
            os.environ.update(before)


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product of a graph and whether it runs in INT8."""

    name: str
    op: str
    int8: bool


def layers(graph_def):
    """The layers of a QDQ or legacy INT8 graph, in graph order.

    In a QDQ graph a layer runs in INT8 when both its inputs come from a Dequantize node: ITEX
    fuses that pattern at run time. Legacy graphs name the op itself (QuantizedConv2D…).
    """
    nodes = {node.name: node for node in graph_def.node}

    def dequantized(name):
        return nodes[name.split(":")[0].lstrip("^")].op == "Dequantize"

    found = []
    for node in graph_def.node:
        if node.op in LAYER_OPS:
            found.append(Layer(node.name, node.op, all(map(dequantized, node.input[:2]))))
        elif node.op.lstrip("_").startswith(("QuantizedConv2D", "QuantizedMatMul", "QuantizedDepth")):
            found.append(Layer(node.name, node.op, True))
    return found
