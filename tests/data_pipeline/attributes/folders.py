"""Images in shades of grey, and folders as CelebA's."""

import numpy as np
from PIL import Image

from data_pipeline.attributes.folder import (
    open_folder,
)

SIZE = 8


def shade(i):
    return np.full((SIZE, SIZE, 3), 20 * i, np.uint8)


def opened(folder, **options):
    return open_folder(folder, **{"size": SIZE, **options})


CELEBA = (
    "4\nSmiling Wearing_Hat \n"
    "000001.jpg -1  1\n000002.jpg  1 -1\n000003.jpg  1  1\n000004.jpg -1 -1\n"
)


def celeba(tmp_path, partition):
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (178, 218), (20 * i,) * 3).save(
            folder / "img_align_celeba" / f"00000{i + 1}.jpg", quality=100
        )
    (folder / "list_attr_celeba.txt").write_text(CELEBA)
    (folder / partition).write_text(
        "".join(f"00000{i + 1}.jpg {i}\n" for i in (0, 1, 2)) + "000004.jpg 0\n000009.jpg 2\n"
        if partition.endswith("txt")
        else "image_id,partition\n000001.jpg,0\n000002.jpg,1\n000003.jpg,2\n000004.jpg,0\n"
    )
    return folder
