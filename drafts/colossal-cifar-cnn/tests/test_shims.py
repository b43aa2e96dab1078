"""What stands in for parts of Colossal-AI on a CPU: in a process of its own, since it changes classes for good."""

import sys
from pathlib import Path

import torch
from colossal_cifar_cnn.cpu_shims import _AdamKernel
from trainyard_shared.testing import run

ONLY_ON_CPUS = """
import sys, warnings
warnings.simplefilter("ignore")
from colossalai.accelerator import CpuAccelerator, CudaAccelerator, set_accelerator
from colossalai.zero.gemini.chunk import Chunk, ChunkManager
from colossalai.zero.low_level.low_level_optim import LowLevelZeroOptimizer
from colossalai.nn.optimizer import cpu_adam
import torch
from colossal_cifar_cnn import cpu_shims

def touched():
    return [
        CpuAccelerator.Stream, CpuAccelerator.current_stream, CpuAccelerator.stream, CpuAccelerator.synchronize,
        CpuAccelerator.device_count, LowLevelZeroOptimizer._sanity_checks, Chunk.device_type, Chunk.close_chunk,
        ChunkManager.move_chunk, torch.nn.SyncBatchNorm.convert_sync_batchnorm.__func__, cpu_adam.CPUAdamLoader,
    ]

before = touched()
set_accelerator(CudaAccelerator())
cpu_shims.install()
assert touched() == before, "on GPUs Colossal-AI runs as it is"
set_accelerator("cpu")
cpu_shims.install()
assert not [one for one, other in zip(touched(), before) if one is other], "all are replaced"
optimizer = object.__new__(LowLevelZeroOptimizer)
optimizer._dtype, optimizer.grad_handles = torch.float32, []
optimizer.optim = torch.optim.SGD([torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1).half())], lr=1)
try:
    optimizer._sanity_checks()
except AssertionError as error:
    assert "parameters of one type" in str(error)
else:
    sys.exit("the check of types is gone")
"""


def test_shims_are_installed_on_cpus_only(tmp_path: Path) -> None:
    finished = run([sys.executable, "-c", ONLY_ON_CPUS], tmp_path)
    assert finished.status == 0, finished.stderr


def test_the_kernel_of_hybrid_adam_is_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(20), torch.nn.Parameter(torch.empty(20))
    theirs.data.copy_(ours)
    reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    kernel, mean, square = _AdamKernel(0.01, 0.9, 0.999, 1e-8, 0.1, True), torch.zeros(20), torch.zeros(20)
    for step in range(1, 6):
        gradient = torch.randn(20)
        theirs.grad = gradient
        reference.step()
        kernel.step(step, 0.01, 0.9, 0.999, 1e-8, 0.1, True, ours, gradient * 8, mean, square, 8.0)
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-6, rtol=0)
    # A step does not depend on the scale of the gradients, but the means do.
    torch.testing.assert_close(mean, reference.state[theirs]["exp_avg"], atol=1e-6, rtol=0)
    torch.testing.assert_close(square, reference.state[theirs]["exp_avg_sq"], atol=1e-6, rtol=0)
