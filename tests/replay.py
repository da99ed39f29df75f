"""A Jupyter kernel that gives the outputs of an executed notebook again, cell by cell.

With it nbval compares what run_all.sh has executed with what is stored, without another run. The
environment variable REPLAY names the executed notebook.
"""

import os
from typing import ClassVar

import nbformat
from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel


class Replay(Kernel):
    implementation, implementation_version, banner = "replay", "1", "replay"
    language_info: ClassVar = {
        "name": "python",
        "mimetype": "text/x-python",
        "file_extension": ".py",
    }

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        cells = nbformat.read(os.environ["REPLAY"], 4).cells
        self.cells = iter([cell for cell in cells if cell.cell_type == "code"])

    async def do_execute(self, code, silent, *args, **kwargs):
        cell = next(self.cells)
        if "injected-parameters" not in cell.metadata.tags and cell.source != code:
            text = f"executed was another cell: {cell.source}"
            other = {"ename": "ValueError", "evalue": text, "traceback": [text]}
            self.send_response(self.iopub_socket, "error", other)
            return {"status": "error", "execution_count": self.execution_count, **other}
        for output in cell.outputs:
            content = {key: value for key, value in output.items() if key != "output_type"}
            self.send_response(self.iopub_socket, output.output_type, content)
        count = {"execution_count": self.execution_count}
        return {"status": "ok", "payload": [], "user_expressions": {}, **count}


if __name__ == "__main__":
    IPKernelApp.launch_instance(kernel_class=Replay)
