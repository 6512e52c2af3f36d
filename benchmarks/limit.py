"""What the machine does at most: the plain float32 matrix product at MiniLM's shapes, in JAX and in PyTorch.

    python benchmarks/limit.py [--tokens=256,512,1024,2048] [--seconds=0.2] [--rounds=3]

GFLOP/s, 2 · tokens · in · out a product, median of the rounds (and their maximum). JAX loops inside one program, on
one CPU device and, in a process of its own, on two that share the machine's cores, each with all the tokens; PyTorch
loops in Python. `x·W` is a dense layer, `x·Wᵀ` its backward pass. The sides take turns; PyTorch is left out where it
is not installed.
"""

import argparse
import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Clock = Callable[[], float]
SHAPES = ((384, 384), (384, 1536), (1536, 384))  # in and out of the dense layers
SIDES = ("jax, 1 device", "jax, 2 devices", "torch")


def rate(call: Callable[[int], None], flops: float, seconds: float, clock: Clock = time.perf_counter) -> float:
    """GFLOP/s of `call(n)`, n products of so many operations each, over about `seconds` after a warm-up."""
    call(2)
    begin = clock()
    call(4)
    number = max(4, int(seconds * 4 / (clock() - begin)))
    begin = clock()
    call(number)
    return 1e-9 * flops * number / (clock() - begin)


def jax_rate(tokens: int, inner: int, outer: int, *, transposed: bool = False, **timing: Any) -> float:
    """GFLOP/s of all JAX devices of this process together, each with so many tokens."""
    import jax

    count = jax.local_device_count()
    program, x, w = _jax_program(count, tokens, inner, outer, transposed)
    return rate(lambda n: jax.block_until_ready(program(x, w, n)), 2.0 * count * tokens * inner * outer, **timing)


@functools.cache
def _jax_program(count: int, tokens: int, inner: int, outer: int, transposed: bool) -> tuple:
    """The loop and its operands.

    A number of each product goes into the next one's left side, so that none is left out or moved.
    """
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    each, same = PartitionSpec("d"), PartitionSpec()
    mesh = jax.make_mesh((count,), ("d",))
    dimensions = (((1,), (1 if transposed else 0,)), ((), ()))

    def loop(x: jax.Array, w: jax.Array, number: jax.Array) -> jax.Array:
        def body(_: int, carry: tuple) -> tuple:
            x, y = carry
            x = x.at[0, 0].set(y[0, 0])
            return x, jax.lax.dot_general(x, w, dimensions)

        first = jax.lax.dot_general(x[0], w, dimensions)
        return jax.lax.fori_loop(1, number, body, (x[0], first))[1][None]

    x, w = operands(tokens, inner, outer, transposed)
    x = jax.device_put(np.broadcast_to(x, (count, *x.shape)), NamedSharding(mesh, each))
    w = jax.device_put(w, NamedSharding(mesh, same))
    return jax.jit(jax.shard_map(loop, mesh=mesh, in_specs=(each, same, same), out_specs=each, check_vma=False)), x, w


def torch_rate(tokens: int, inner: int, outer: int, *, transposed: bool = False, **timing: Any) -> float:
    """GFLOP/s of PyTorch with its threads as they are set."""
    import torch

    x, w = (torch.from_numpy(value) for value in operands(tokens, inner, outer, transposed))
    w = w.T if transposed else w
    y = torch.empty(tokens, outer)

    def call(number: int) -> None:
        for _ in range(number):
            torch.mm(x, w, out=y)

    return rate(call, 2.0 * tokens * inner * outer, **timing)


def operands(tokens: int, inner: int, outer: int, transposed: bool) -> tuple[np.ndarray, np.ndarray]:
    """The left side, and the right side as it lies in memory."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((tokens, inner), np.float32)
    return x, draw.standard_normal((outer, inner) if transposed else (inner, outer), np.float32)


def measure(side: str, tokens: list[int], seconds: float) -> list[float]:
    """One round of one side: GFLOP/s of every number of tokens, shape and layout, in that order."""
    one = torch_rate if side == "torch" else jax_rate
    return [
        one(number, *shape, transposed=transposed, seconds=seconds)
        for number in tokens
        for shape in SHAPES
        for transposed in (False, True)
    ]


def in_own_process(side: str, tokens: list[int], seconds: float) -> list[float]:
    """`measure` where the number of devices is the side's."""
    devices = "2" if "2" in side else "1"
    flags = [f"--side={side}", f"--tokens={','.join(map(str, tokens))}", f"--seconds={seconds}"]
    done = subprocess.run(
        [sys.executable, __file__, *flags],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": devices, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    rates: list[float] = json.loads(done.stdout.splitlines()[-1])
    return rates


def main() -> None:
    """Prints a line for each number of tokens and product."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="256,512,1024,2048")
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help="one round of one side, as JSON")
    flags = parser.parse_args()
    tokens = [int(number) for number in flags.tokens.split(",")]
    if flags.side:
        print(json.dumps(measure(flags.side, tokens, flags.seconds)))
        return
    sides = [side for side in SIDES if side != "torch" or importlib.util.find_spec("torch")]
    rounds = [[in_own_process(side, tokens, flags.seconds) for side in sides] for _ in range(flags.rounds)]
    print(f"{'tokens':>6s} {'product':>14s}" + "".join(f"{side:>18s}" for side in sides) + "   GFLOP/s: median (max)")
    lines = [(number, shape, layout) for number in tokens for shape in SHAPES for layout in ("x·W", "x·Wᵀ")]
    for i, (number, (inner, outer), layout) in enumerate(lines):
        columns = [[turn[j][i] for turn in rounds] for j in range(len(sides))]
        cells = "".join(f"{statistics.median(c):10.1f} {f'({max(c):.1f})':>7s}" for c in columns)
        print(f"{number:6d} {f'{inner}→{outer}':>9s} {layout:<4s}{cells}", flush=True)


if __name__ == "__main__":
    main()
