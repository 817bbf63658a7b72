"""sgm's module names at SDXL's own size, as in its published files."""

from persongen_jax.weights.recognition.sgm_names import rename_by_prefix, unet_modules


def test_sdxl():
    table = unet_modules([False, True, True], [True, True, False], [2, 2, 2])
    assert table["input_blocks.0.0"] == "conv_in"
    assert table["input_blocks.3.0.op"] == "down_blocks.0.downsamplers.0.conv"
    assert table["input_blocks.4.0.skip_connection"] == "down_blocks.1.resnets.0.conv_shortcut"
    assert table["input_blocks.8.1"] == "down_blocks.2.attentions.1"
    assert "input_blocks.9.0.op" not in table
    assert table["output_blocks.2.2.conv"] == "up_blocks.0.upsamplers.0.conv"
    assert table["output_blocks.5.1"] == "up_blocks.1.attentions.2"
    assert table["output_blocks.8.0.out_layers.3"] == "up_blocks.2.resnets.2.conv2"
    assert "output_blocks.8.1" not in table
    assert len(set(table.values())) == len(table)


def test_the_longest_whole_name_is_replaced():
    table = {"a": "x", "a.1": "y"}
    assert rename_by_prefix(table, "a.1.b") == "y.b"
    assert rename_by_prefix(table, "a.10.b") == "x.10.b"
    assert rename_by_prefix(table, "a.1") == "y"
    assert rename_by_prefix(table, "ab.1") is None
