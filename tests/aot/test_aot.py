"""Compiling for absent TPUs: what is read from a program, and what the compiler is asked.

The estimates themselves are the compiler's; these tests check that all of them are found and that
loops, branches and collectives count once per execution.
"""

import importlib.metadata
import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from configs.base import get_config
from persongen_jax.aot import chips as aot_chips
from persongen_jax.aot.__main__ import (
    compile_for_topology,
    matches,
    parse_options,
    read_json,
    search,
    write_json,
)
from persongen_jax.aot.chips import GIB, open_topology
from persongen_jax.aot.compiling import DoesNotFit, compile_program, measure, report
from persongen_jax.aot.cost import corrected_optimal, read_cost, shape_bytes
from persongen_jax.aot.programs import Program, encoders, training, with_batch
from persongen_jax.models.attention_kernels import attention
from persongen_jax.models.sdxl.sizes import CONFIGS
from persongen_jax.parallel.sharding import batch_sharding, make_mesh, replicated
from persongen_jax.systems.abstract import network_configs
from persongen_jax.training import flop_count
from persongen_jax.weights.random_base import make_configs
from tests.helpers.training_runs import small_base, small_config

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU's compiler is not installed: pip install 'persongen_jax[tpu-aot]'",
)

# The compiler's output, reduced to what is read.
TEXT = """HloModule jit_f, is_scheduled=true

%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %f.1 = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%p), backend_config={"estimated_cycles":"10"}
  ROOT %ar.1 = bf16[8,128]{1,0:T(8,128)(2,1)} all-reduce(%f.1), replica_groups={{0,1}}
}

%condition (p: (s32[], bf16[8,128])) -> pred[] {
  ROOT %c.1 = pred[] compare(%a, %b), direction=LT, backend_config={"estimated_cycles":"1"}
}

%below (p: (s32[], bf16[4])) -> pred[] {
  %n.1 = s32[]{:T(128)} constant(20)
  ROOT %lt.1 = pred[]{:T(512)} compare(%a, %n.1), direction=LT
}

%cheap (p: bf16[4]) -> bf16[4] {
  ROOT %x.1 = bf16[4]{0} copy(%p), backend_config={"estimated_cycles":"3"}
}

%dear (p: bf16[4]) -> bf16[4] {
  ROOT %x.2 = bf16[4]{0} copy(%p), backend_config={"estimated_cycles":"500"}
}

%twice (p: (bf16[4], u32[])) -> (bf16[4], u32[]) {
  %t.1 = (bf16[4]{0}, u32[]{:T(128)}) parameter(0)
  %t.2 = u32[]{:T(128)} get-tuple-element(%t.1), index=1
  %one.1 = u32[]{:T(128)} constant(1)
  %t.3 = u32[]{:T(128)} add(%t.2, %one.1)
  %y.1 = bf16[4]{0} copy(%t.1), backend_config={"estimated_cycles":"1000"}
  %t.4 = u32[]{:T(128)} add(%t.3, %one.1)
  ROOT %t.5 = (bf16[4]{0}, u32[]{:T(128)}) tuple(%y.1, %t.4)
}

%below8 (p: (bf16[4], u32[])) -> pred[] {
  %e.1 = u32[]{:T(128)} constant(8)
  %e.2 = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %e.3 = pred[]{:T(512)} compare(%e.2, %e.1), direction=LT
}

%piece.1 (p: bf16[4]) -> bf16[8] {
  ROOT %ag.1 = bf16[8]{0} all-gather(%p), channel_id=5, replica_groups={{0,1}}
}

%piece.2 (p: bf16[4]) -> bf16[8] {
  ROOT %ag.2 = bf16[8]{0} all-gather(%p), channel_id=5, replica_groups={{0,1}}
}

ENTRY %main (p: bf16[8,128]) -> bf16[8,128] {
  %w.1 = (s32[], bf16[8,128]{1,0}) while(%t), body=%body, condition=%condition, \
backend_config={"known_trip_count":{"n":"7"}}
  %w.2 = (s32[], bf16[8,128]{1,0}) while(%t), condition=%condition, body=%body
  %b.1 = bf16[4]{0} conditional(%i, %p, %p), branch_computations={%cheap, %dear}
  %k.1 = (bf16[4]{0}, f32[2]{0}) custom-call(%p), custom_call_target="tpu_custom_call"
  %g.1 = (bf16[4,8]{1,0}, bf16[8,8]{1,0}) all-gather-start(%p), replica_groups=[1,2]<=[2]
  %h.1 = bf16[8]{0} fusion(%p), kind=kOutput, calls=%piece.1
  %h.2 = bf16[8]{0} fusion(%p), kind=kOutput, calls=%piece.2
  %w.3 = (s32[], bf16[4]{0}) while(%t), condition=%below, body=%cheap
  %w.4 = (bf16[4]{0}, u32[]) while(%t), condition=%below8, body=%twice
  ROOT %s.1 = f32[4]{0} reduce-scatter(%p), replica_groups=mesh['x'=3,'y'=2] {'y'}, to_apply=%add
}
"""


def test_loops_branches_and_collectives_count_as_often_as_they_run():
    cost = read_cost(TEXT, unknown_trips=3)
    assert cost.cycles == (7 + 3) * 11 + 500 + 20 * 3 + 8 // 2 * 1000
    assert cost.unknown_loops == 1
    assert cost.kernels == {"tpu_custom_call": 1}
    assert cost.collectives == {
        "all-reduce": (10, 10 * 8 * 128 * 2),
        "all-gather": (2, 8 * 8 * 2 + 8 * 2),  # the sharded one once
        "reduce-scatter": (1, 2 * 4 * 4),
    }


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        read_cost("nothing")


def test_shape_bytes():
    assert shape_bytes("(f32[4,8]{1,0:T(8,128)}, bf16[], pred[3], u8[2]{0})") == [128, 2, 3, 2]


def test_custom_calls_are_taken_out_of_the_estimate():
    assert corrected_optimal(0.25, 0.1, 3) == 0.25
    assert corrected_optimal(-1.75, 0.1, 3) == 0.25
    assert corrected_optimal(-0.95, 0.1, 3) == pytest.approx(1.05)


def test_options():
    assert parse_options(["a=true", "b=-2", "c=x"]) == {"a": True, "b": -2, "c": "x"}
    with pytest.raises(ValueError, match="NAME=VALUE"):
        parse_options(["a"])


def test_rows_are_added_to_the_file(tmp_path):
    path = tmp_path / "new" / "aot.json"
    assert read_json(path) == []
    write_json(path, [{"n": 1}])
    write_json(path, [*read_json(path), {"n": 2}])
    assert json.loads(path.read_text()) == [{"n": 1}, {"n": 2}]


def test_unknown_chip_is_named():
    with pytest.raises(ValueError, match="v4:2x2.*v5e"):
        open_topology("v4:2x2")


def test_a_base_that_is_not_a_directory_is_refused():
    """It was mistaken for SDXL at full size."""
    config = get_config()
    assert network_configs(config)[0] is CONFIGS
    for base in ("middle", "/mistyped"):
        config.base = base
        with pytest.raises(ValueError, match=f"config.base={base} is not a directory"):
            network_configs(config)
    # A size of weights/random_base.py is accepted as that size.
    config.base = "mid"
    widths = network_configs(config)[0]["unet"]["block_out_channels"]
    assert widths == make_configs("mid", 49408)["unet"]["block_out_channels"]
    assert widths != CONFIGS["unet"]["block_out_channels"]


def test_missing_compiler_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(aot_chips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="tpu-aot"):
        open_topology("v5e:2x2")


@pytest.fixture(scope="module")
def topology():
    chip, devices = open_topology("v5e:2x2")
    return chip, make_mesh(devices)


def product_program(mesh, rows: int, times: int) -> Program:
    """Products of [rows, 256] with a matrix in sequence, and a sum over the chips."""
    x = jax.ShapeDtypeStruct((rows, 256), jnp.bfloat16, sharding=batch_sharding(mesh))
    w = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=replicated(mesh))

    @jax.jit
    def function(x, w):
        x, _ = jax.lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, length=times)
        return x.astype(jnp.float32).sum(0)

    return Program(function, (x, w), {"weights": w, "batch": x}, rows, mesh)


@needs_libtpu
def test_a_loop_costs_its_length(topology):
    chip, mesh = topology
    costs = []
    for times in (50, 100):
        _, compiled, *_ = compile_program(product_program(mesh, 4096, times), {})
        costs.append(read_cost(compiled.as_text()))
    assert costs[0].unknown_loops == 0
    assert 1.8 < costs[1].cycles / costs[0].cycles < 2.2
    # The sum over the chips: 256 float32 numbers.
    assert costs[0].collectives["all-reduce"] == (1, 256 * 4)
    # No faster than the chip: 100 products of 1024 rows on each of four.
    assert costs[1].cycles / chip.clock > 100 * 2 * 1024 * 256 * 256 / chip.peak


@needs_libtpu
def test_too_large_programs_report_the_needed_memory(topology):
    _, mesh = topology
    with pytest.raises(DoesNotFit) as raised:
        compile_program(product_program(mesh, 4 * 40 * 2**30 // 512, 1), {})
    assert raised.value.needed >= 40 * GIB
    assert "--config.remat=True" in str(raised.value)


@needs_libtpu
@pytest.mark.parametrize("options", [{"nonsense": True}, {"xla_tpu_scoped_vmem_limit_kib": "much"}])
def test_options_that_the_compiler_rejects_are_reported_at_once(options, monkeypatch):
    monkeypatch.setattr("persongen_jax.aot.__main__.training", None)  # nothing is built
    with pytest.raises(ValueError, match=f"--option {next(iter(options))}="):
        compile_for_topology(get_config(), "v5e:2x2", 1, options=options)


@needs_libtpu
def test_attention_in_a_kernel_is_counted(topology, tmp_path):
    chip, mesh = topology
    n, d = 2048, 64
    x = jax.ShapeDtypeStruct((mesh.size, n, 1, d), jnp.bfloat16, sharding=batch_sharding(mesh))
    program = Program(jax.jit(lambda x: attention(x, x, x)), (x,), {}, mesh.size, mesh)
    text = tmp_path / "new" / "program.txt"
    row, _ = measure(program, chip, {}, text=text)
    assert row["missed"]["kernels without an estimate"] == {"tpu_custom_call": 1}
    assert row["flops"]["of the model"] == 2 * 2 * n * n * d
    assert "tpu_custom_call" in text.read_text()


@needs_libtpu
def test_unread_weights_on_the_chip_count_as_memory(topology):
    chip, mesh = topology

    def rows(gib, holds_all=True, **kw):
        unread = jax.ShapeDtypeStruct((gib, 2**28), jnp.float32, **kw)
        x = jax.ShapeDtypeStruct((4096, 256), jnp.bfloat16, sharding=batch_sharding(mesh))
        function = jax.jit(lambda x, unread: x.astype(jnp.float32).sum(0))
        parts = {"frozen weights": unread, "batch": x}
        program = Program(function, (x, unread), parts, 4096, mesh, holds_all=holds_all)
        return measure(program, chip, {})[0]

    fits = rows(8, sharding=replicated(mesh))
    assert fits["bytes"]["unread"] == 8 * GIB
    assert 8 * GIB < fits["bytes"]["total"] < 8.1 * GIB
    assert "8.00 of it is not read" in report(fits)
    with pytest.raises(DoesNotFit, match="20.00 of it for frozen weights.*offload_encoders"):
        rows(20, sharding=replicated(mesh))
    assert rows(20)["bytes"]["unread"] == 0  # not on any chip
    assert rows(20, holds_all=False, sharding=replicated(mesh))["bytes"]["unread"] == 0


@needs_libtpu
def test_impossible_shape_of_a_topology_is_named():
    with pytest.raises(ValueError, match="v5e:3x5x7"):
        open_topology("v5e:3x5x7")


@pytest.mark.slow
def test_encoders_alone_are_what_a_cache_saves(tmp_path_factory, tmp_path):
    base = small_base(tmp_path_factory)
    config = with_batch(small_config(base, tmp_path), 4, 1)
    config.size = 32
    mesh = make_mesh(jax.devices()[:1], fsdp=1)

    def flops(program):
        return flop_count.count(program.trace().jaxpr.jaxpr)

    whole, cached = (flops(training(config, mesh, cached=c)) for c in (False, True))
    alone = flops(encoders(config, mesh))
    # The step also encodes the empty prompt, once.
    assert alone <= whole - cached < 1.1 * alone


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("what", ["train", "sample", "encode"])
def test_the_real_programs_of_a_small_base(what, tmp_path_factory, tmp_path):
    base = small_base(tmp_path_factory)
    config = small_config(base, tmp_path)
    config.size, config.validation_steps = 32, 3
    row = compile_for_topology(config, "v5e:2x2", 2, what=what)
    assert (row["chips"], row["per_chip_batch"]) == (4, 2)
    sizes = row["bytes"]
    # Encoders as small as these only need the chip's fast memory.
    assert (what != "encode") <= sizes["temporaries"] < sizes["total"] < sizes["memory"]
    assert 0 < row["mfu"]["cycles"] < 1
    assert 0 < row["mfu"]["optimal"] < 1
    if what == "train":
        # Gradients of trained weights go over the network, in float32.
        assert row["collectives"]["all-reduce"]["bytes"] >= sizes["trained weights"] / 2
    else:
        assert row["collectives"] == {}  # every chip generates its own images
    assert "per chip" in report(row)


@needs_libtpu
@pytest.mark.slow
def test_search_compiles_and_keeps_the_tries(tmp_path_factory, tmp_path, monkeypatch):
    base = small_base(tmp_path_factory)
    config = small_config(base, tmp_path)
    config.size = 32
    said, kept = [], []
    kw = {"what": "encode", "tell": said.append}
    row = search(config, "v5e:2x2", 20_000, keep=kept.append, **kw)
    assert row["tries"][row["per_chip_batch"]] <= row["bytes"]["memory"]
    assert max(row["tries"]) > row["per_chip_batch"]
    assert len(said) == len(row["tries"]) < 10
    assert kept[-1]["per_chip_batch"] == row["per_chip_batch"]
    sizes = [each["per_chip_batch"] for each in kept]
    assert sizes == sorted(sizes)

    # A row in the file is not compiled again, whether it was a search or a single batch.
    def never(*_, **__):
        raise AssertionError("compiled again")

    monkeypatch.setattr("persongen_jax.aot.__main__.compile_for_topology", never)
    before = json.loads(json.dumps(kept[-1:]))
    again = search(config, "v5e:2x2", 20_000, before=before, **kw)
    assert again["tries"] == row["tries"]
    assert again["per_chip_batch"] == row["per_chip_batch"]
    assert said[-1].endswith("from an earlier run")


def test_rows_of_the_same_program_and_compiler():
    version = importlib.metadata.version("jax")
    row = {"config": "a.py", "overrides": {"size": 8}, "topology": "v5e:2x2", "cached": True}
    asked = {**row, "options": {"a": 2}}
    row |= {"compile": {"options": {"a": 2}, "tracing_s": 1}, "versions": {"jax": version}}
    assert matches(row, asked)
    assert not matches(row, {**asked, "overrides": {}})
    assert not matches(row, {**asked, "options": {"a": 1}})
    assert not matches({**row, "versions": {"jax": "0.0.1"}}, asked)
    assert not matches({**row, "versions": {"jax": version, "not-installed": "1"}}, asked)
    assert not matches({k: v for k, v in row.items() if k != "overrides"}, asked)
