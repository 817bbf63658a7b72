"""What the authors' own code gave for tiny random weights.

tests/helpers/published_goldens.py reads it. Made on CPU in float32 with torch 2.13.0, diffusers
0.42.1, transformers 5.24.0 and OpenCV 5.0.0, by the code of these repositories (all Apache-2.0;
PuLID's eva_clip is a copy of MIT code):

    tencent-ailab/IP-Adapter        62e4af9d0c1ac7d5f8dd386a0ccf2211346af1a2
    instantX-research/InstantID     2145b67f9607da6234702063692330185f374486
    TencentARC/PhotoMaker           060b4fcb10b76a4554edf565d6106b7e36c968f0
    ToTheBeginning/PuLID            1aa2fc7df4bf51080df39f355f9abdc1cbfefbaa

Names in a file: w/NAME weights under their original key (w/MODULE/NAME of several modules), in/NAME
inputs, out/NAME outputs, and "config", JSON with the sizes and settings. Layouts are PyTorch's.
Literal widths of the originals were made small, and downloads and detectors replaced by stored
inputs; nothing else was changed. No weight is a released one, and no picture is a photograph.
"""
