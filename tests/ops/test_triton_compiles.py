"""The Triton kernels compile for a GPU, ahead of time and without one. The interpreter does not check that."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

PROGRAM = """
import importlib
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGET = GPUTarget("cuda", 90, 32)


def build(kernel, types, constants, warps, fusion=True):
    signature = {**types, **{name: "constexpr" for name in constants}}
    assert list(signature) == kernel.arg_names, (list(signature), kernel.arg_names)
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    options = {"num_warps": warps, "enable_fp_fusion": fusion}
    return triton.compile(source, target=TARGET, options=options)


def module(name):
    return importlib.import_module(f"seamfast.ops.triton.{name}")


ce, count, gather, stamp = (module(n) for n in ("cross_entropy", "count_outcomes", "gather_augment", "stamp_trigger"))
occlude = module("occlude")
for dtype in ("fp32", "bf16", "fp16"):
    data = f"*{dtype}"
    for classes in (10, 1000, 4096, 16384, 32000):
        tiled, rows, block, warps = ce.launch_of(classes)
        types = dict(logits=data, row_stride="i64", column_stride="i32", labels="*i64", ids="*i64", mixed_labels="*i64")
        types |= dict(mixed_weight="*fp32", seed="i64", seed_pointer="*i64", step="i32", step_pointer="*i64")
        types |= dict(loss="*fp32", grad=data, scratch="*i64", parts="*fp32", n="i32", classes="i32", programs="i32")
        types |= dict(scale="fp32")
        for random in (True, False):
            constants = dict(RANDOM=random, EXCLUDE_TRUE=True, MIXED=not random, GRAD=True)
            constants |= dict(NONE_=not random, SEED_POINTER=random, STEP_POINTER=random)
            constants |= dict(ROWS=rows, BLOCK=block)
            build(ce._tiles_kernel if tiled else ce._rows_kernel, types, constants, warps)
    types = dict(logits=data, row_stride="i64", column_stride="i32", labels="*i64", trigger_ids="*i64", targets="*i64")
    types |= dict(counters="*i64", class_correct="*i64", n="i32", classes="i32", triggers="i32")
    for rows, block in ((64, 16), (1, 4096)):
        constants = dict(TRIGGERS=True, CLASS_CORRECT=True, ROWS=rows, BLOCK=block)
        build(count._kernel, types, constants, 4)
    shape = dict(CHANNELS=3, HEIGHT=32, WIDTH=32)
    for last in (False, True):
        types = dict(images="*u8", indices="*i64", table=data, out=data, count="i64", seed="i64", seed_pointer="*i64")
        types |= dict(epoch="i64", epoch_pointer="*i64")
        constants = shape | dict(PAD=4, FLIP=True, CHANNELS_LAST=last)
        constants |= dict(SEED_POINTER=last, EPOCH_POINTER=last, BLOCK=1024)
        build(gather._kernel, types, constants, 4, False)
        types = dict(images="*u8", indices="*i64", trigger_ids="*i64", sample_ids="*i64", rows="*i64")
        types |= dict(numbers="*fp64", table=data, out=data, count="i64", triggers="i32", seed="i64")
        types |= dict(seed_pointer="*i64")
        constants = shape | dict(CHANNELS_LAST=last, SEED_POINTER=last, BLOCK=1024)
        kernel = build(stamp._kernel, types, constants, 4, False)
        assert "fma.rn.f64" not in kernel.asm["ptx"], "float64 is fused, so ties would fall differently"
        types = dict(images="*u8", indices="*i64", trigger_ids="*i64", rows="*i64", table=data, out=data)
        types |= dict(above="*fp64", count="i64", triggers="i32", planes="i32")
        kernel = build(stamp._dither_kernel, types, shape | dict(CHANNELS_LAST=last, LANES=32), 1, False)
        assert "fma.rn.f64" not in kernel.asm["ptx"], "float64 is fused, so ties would fall differently"
for channels, last in ((3, False), (3, True), (5, True)):
    types = dict(images="*fp32", mean="*fp32", lowest="*fp32", highest="*fp32", sample_ids="*i64", heights="*i64")
    types |= dict(widths="*i64", occluded="*fp32", neutral="*fp32", count="i32", rectangles="i32", seed="i64")
    types |= dict(seed_pointer="*i64", step="i64", step_pointer="*i64")
    constants = dict(CHANNELS=channels, HEIGHT=32, WIDTH=32, HEIGHTS=16, WIDTHS=1, CHANNELS_LAST=last)
    constants |= dict(SEED_POINTER=last, STEP_POINTER=last, BLOCK=1024)
    kernel = build(occlude._kernel, types, constants, 4, False)
    assert "fma.rn.f32" not in kernel.asm["ptx"], "a product is fused with its sum, so colors would round otherwise"
print("compiled")
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton: pip install seamfast[triton]")
def test_every_kernel_compiles_for_a_gpu(tmp_path: object) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout == "compiled\n"
