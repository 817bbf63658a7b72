"""Which file of a folder is used, sharded sets, and wrong indices."""

import json

import numpy as np
import pytest

from persongen_jax.weights.errors import (
    BadConfig,
    BadIndex,
    KeyMismatch,
    MissingFile,
    WeightsError,
)
from persongen_jax.weights.files.directory import open_component, open_file, read_config
from persongen_jax.weights.files.safetensors_file import write_safetensors


def put(path, **tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {k: np.array([v], np.float32) for k, v in tensors.items()}
    write_safetensors(path, [(k, v.shape, v.dtype, lambda v=v: v) for k, v in arrays.items()])


def put_bin(path, **tensors):
    torch = pytest.importorskip("torch")
    torch.save({k: torch.tensor([float(v)]) for k, v in tensors.items()}, path)


def put_index(path, weight_map):
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def value(folder, variant=None, key="a"):
    with open_component(folder, variant) as source:
        return float(source.read(key)[0])


@pytest.mark.parametrize("stem", ["diffusion_pytorch_model", "model"])
def test_plain_wins_unless_a_variant_is_asked_for(tmp_path, stem):
    put(tmp_path / f"{stem}.safetensors", a=1)
    put(tmp_path / f"{stem}.fp16.safetensors", a=2)
    put_bin(tmp_path / f"{stem.replace('diffusion_pytorch_model', 'pytorch_model')}.bin", a=3)
    assert value(tmp_path) == 1 and value(tmp_path, "fp16") == 2


def test_a_sole_variant_is_taken_and_two_are_not(tmp_path):
    put(tmp_path / "model.fp16.safetensors", a=2)
    assert value(tmp_path) == 2
    put(tmp_path / "model.bf16.safetensors", a=4)
    with pytest.raises(WeightsError, match="bf16, fp16"):
        value(tmp_path)
    assert value(tmp_path, "bf16") == 4


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "pytorch_model.bin"])
def test_torch_files_where_there_is_nothing_better(tmp_path, name):
    put_bin(tmp_path / name, a=3)
    assert value(tmp_path) == 3
    put(tmp_path / "model.fp16.safetensors", a=2)
    assert value(tmp_path) == 2


def test_absent_variant_folder_and_weights(tmp_path):
    put(tmp_path / "unet" / "model.safetensors", a=1)
    with pytest.raises(MissingFile, match="'fp16'.*There is: model.safetensors"):
        open_component(tmp_path / "unet", "fp16")
    with pytest.raises(MissingFile, match="no such folder"):
        open_component(tmp_path / "vae")
    (tmp_path / "unet" / "model.safetensors").rename(tmp_path / "unet" / "weights.safetensors")
    with pytest.raises(MissingFile, match="There is: weights.safetensors"):
        open_component(tmp_path / "unet")


def test_two_sets_of_equal_rank(tmp_path):
    put(tmp_path / "model.safetensors", a=1)
    put_index(tmp_path / "model.safetensors.index.json", {"a": "model-00001-of-00001.safetensors"})
    with pytest.raises(WeightsError, match="all claim"):
        open_component(tmp_path)


def shards(folder, index="diffusion_pytorch_model.safetensors.index.json"):
    put(folder / "m-00001-of-00002.safetensors", a=1, b=2)
    put(folder / "m-00002-of-00002.safetensors", c=3)
    weight_map = {
        "a": "m-00001-of-00002.safetensors",
        "b": "m-00001-of-00002.safetensors",
        "c": "m-00002-of-00002.safetensors",
    }
    put_index(folder / index, weight_map)
    return folder / index, weight_map


def test_shards(tmp_path):
    index, _ = shards(tmp_path)
    with open_component(tmp_path) as source:
        assert source.keys() == ["a", "b", "c"] and source.describe() == str(index)
        assert [float(source.read(k)[0]) for k in source.keys()] == [1, 2, 3]
        assert source.info("c") == (np.float32, (1,))
        with pytest.raises(KeyMismatch, match="index.json"):
            source.read("d")


def test_shards_of_a_variant(tmp_path):
    shards(tmp_path, "model.safetensors.index.fp16.json")
    put(tmp_path / "model.fp16-00001-of-00002.safetensors", a=9)  # not a set by itself
    assert value(tmp_path, "fp16", "c") == 3
    with pytest.raises(MissingFile, match="'bf16'"):
        open_component(tmp_path, "bf16")


def test_torch_shards(tmp_path):
    put_bin(tmp_path / "pytorch_model-00001-of-00001.bin", a=5)
    put_index(tmp_path / "pytorch_model.bin.index.json", {"a": "pytorch_model-00001-of-00001.bin"})
    assert value(tmp_path) == 5


def test_what_diffusers_shards_is_read(tmp_path):
    pytest.importorskip("diffusers")
    from diffusers import AutoencoderKL

    model = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)
    model.save_pretrained(tmp_path, max_shard_size="10KB", variant="fp16")
    assert (tmp_path / "diffusion_pytorch_model.safetensors.index.fp16.json").exists()
    state = model.state_dict()
    with open_component(tmp_path) as source:
        assert set(source.keys()) == set(state)
        for key in source.keys():
            np.testing.assert_array_equal(source.read(key), state[key].numpy())
    assert read_config(tmp_path)["block_out_channels"] == [8]


def test_absent_shard(tmp_path):
    shards(tmp_path)
    (tmp_path / "m-00002-of-00002.safetensors").unlink()
    with pytest.raises(MissingFile, match="m-00002-of-00002"):
        open_component(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "sub/../../secret.safetensors",
        "{parent}/secret.safetensors",
        "..\\secret.safetensors",
        "C:\\secret.safetensors",
        "s.safetensors\0",
    ],
)
def test_paths_out_of_the_folder(tmp_path, name):
    put(tmp_path / "secret.safetensors", a=1)
    folder = tmp_path / "unet"
    folder.mkdir()
    name = name.format(parent=tmp_path)
    put_index(folder / "model.safetensors.index.json", {"a": name})
    with pytest.raises(BadIndex, match="outside its folder"):
        open_component(folder)


def test_links_out_of_the_folder_only_into_a_hub_cache(tmp_path):
    put(tmp_path / "secret.safetensors", a=1)
    folder = tmp_path / "unet"
    folder.mkdir()
    (folder / "s.safetensors").symlink_to(tmp_path / "secret.safetensors")
    put_index(folder / "model.safetensors.index.json", {"a": "s.safetensors"})
    with pytest.raises(BadIndex, match="link to"):
        open_component(folder)

    cache = tmp_path / "models--x--y"
    put(cache / "blobs" / "0123.safetensors", a=7)
    (cache / "blobs" / "0123.safetensors").rename(cache / "blobs" / "0123")
    snapshot = cache / "snapshots" / "rev" / "unet"
    snapshot.mkdir(parents=True)
    (snapshot / "s.safetensors").symlink_to("../../../blobs/0123")
    put_index(snapshot / "model.safetensors.index.json", {"a": "s.safetensors"})
    assert value(snapshot) == 7
    (snapshot / "s.safetensors").unlink()
    (snapshot / "s.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(BadIndex, match="link to"):
        open_component(snapshot)


def test_index_and_shards_disagree(tmp_path):
    index, weight_map = shards(tmp_path)
    put_index(index, {**weight_map, "d": "m-00002-of-00002.safetensors"})
    with pytest.raises(BadIndex, match="lists d in m-00002.*lacks"):
        open_component(tmp_path)
    del weight_map["b"]
    put_index(index, weight_map)
    with pytest.raises(BadIndex, match="does not list b of m-00001"):
        open_component(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSON"),
        ("[]", "JSON object"),
        ("{}", "weight_map"),
        ('{"weight_map": []}', "weight_map"),
        ('{"weight_map": {}}', "weight_map"),
        ('{"weight_map": {"a": 3}}', "file names"),
        ('{"weight_map": {"a": ""}}', "file names"),
    ],
)
def test_malformed_index(tmp_path, text, words):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(BadIndex, match=words):
        open_component(tmp_path)


def test_config(tmp_path):
    with pytest.raises(MissingFile, match="config.json"):
        read_config(tmp_path)
    path = tmp_path / "config.json"
    for text in ("{", "[1]", '"x"', "\udcff"):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(BadConfig, match="config.json"):
            read_config(tmp_path)
    path.write_text('{"in_channels": 4}')
    assert read_config(tmp_path) == {"in_channels": 4}


def test_open_file_by_its_ending(tmp_path):
    put(tmp_path / "a.safetensors", a=1)
    assert open_file(tmp_path / "a.safetensors").keys() == ["a"]
    with pytest.raises(WeightsError, match="msgpack"):
        open_file(tmp_path / "a.msgpack")


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_what_is_no_weights_at_all(name, tmp_path):
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(WeightsError, match="a Git LFS pointer, not the file itself"):
        open_file(path)
    path.write_text('{"a": 1, "b": 2}')
    with pytest.raises(WeightsError, match="is JSON and no weights"):
        open_file(path)


def test_a_file_without_an_ending(tmp_path):
    put(tmp_path / "a.safetensors", x=3)
    (tmp_path / "a.safetensors").rename(tmp_path / "0a1b2c")
    with open_file(tmp_path / "0a1b2c") as source:
        assert source.read("x") == 3


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480])  # a pickle begins with these bytes
def test_a_header_of_a_length_that_looks_like_a_pickle(length, ending, tmp_path):
    header = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(length)
    values = np.float32([1, 2])
    path = tmp_path / f"a.{ending}"
    path.write_bytes(length.to_bytes(8, "little") + header + values.tobytes())
    with open_file(path) as source:
        np.testing.assert_array_equal(source.read("x"), values)
