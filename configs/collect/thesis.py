"""The thesis' data set (section 4.3): 512-pixel sides, 256-pixel faces, captions by Qwen2.5-VL.

    python -m data_pipeline.collect --config configs/collect/thesis.py --work WORK --out OUT \\
        --set caption.captioner=qwen:/path/to/Qwen2.5-VL-7B-Instruct --workers 16

People with "elsewhere" in the column origin are the out-of-domain set. PhotoMaker's own rule of
verification: --set verify.rule=paper, which drops nothing in groups of up to 65 pictures.
"""

from data_pipeline.collect.settings import Collect, Output, Split


def get_config() -> Collect:
    return Collect(
        name="Identities of the thesis",
        workers=2,
        split=Split(in_train=10, out_of_train=10, out_of_domain=("elsewhere",)),
        output=Output(shards=True),
    )
