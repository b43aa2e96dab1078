"""What Colossal-AI 0.5.0 needs to run its plugins without a GPU: a few calls of its CPU accelerator that only raise.

`install` is called once, after the accelerator is known, and does nothing unless that is the CPU: on GPUs Colossal-AI
runs as it is. Nothing here changes what is computed, but for the last entry, which computes the same in another place.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor


def install() -> None:
    """Make Colossal-AI's plugins run on CPUs; does nothing where its accelerator is none."""
    from colossalai.accelerator import get_accelerator

    accelerator = get_accelerator()
    if accelerator.name != "cpu":
        return
    _streams(type(accelerator))
    _counts(type(accelerator))
    _low_level_zero()
    _gemini()
    _batch_norm()
    _adam_kernel()


class _NullStream:
    """There is one queue of work on a CPU, and everything is already in its order."""

    def wait_stream(self, other: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


def _streams(accelerator: Any) -> None:
    """ZeRO and Gemini make a CUDA stream for communication and wait for it, also where they do not overlap."""
    accelerator.Stream = lambda self, *args, **kwargs: _NullStream()
    accelerator.current_stream = lambda self, device=None: _NullStream()
    accelerator.stream = lambda self, stream: contextlib.nullcontext()
    # Loading an optimizer state ends with a wait for the device.
    accelerator.synchronize = lambda self, device=None: None


def _counts(accelerator: Any) -> None:
    """The loss scaler of fp16 asks how many devices there are, and does nothing with the answer."""
    accelerator.device_count = lambda self: 0


def _low_level_zero() -> None:
    """ZeRO refuses other devices than CUDA and NPU by an assertion; its other check, of types, is kept."""
    from colossalai.zero.low_level.low_level_optim import LowLevelZeroOptimizer

    def check_types(self: Any) -> None:
        found = {parameter.dtype for group in self.optim.param_groups for parameter in group["params"]}
        assert found == {self._dtype}, f"parameters of one type are expected, not of {found}"

    LowLevelZeroOptimizer._sanity_checks = check_types


def _gemini() -> None:
    """Gemini tells a chunk on the device from one offloaded to the host by the word "cpu", and would move it.

    Here both are the same memory: every chunk counts as being on the device, and none is ever moved.
    """
    from colossalai.zero.gemini.chunk import Chunk, ChunkManager

    close = Chunk.close_chunk

    def close_chunk(self: Any) -> None:
        close(self)
        if self.cpu_shard is not None:
            self.cuda_shard, self.cpu_shard = self.cpu_shard, None

    Chunk.close_chunk = close_chunk
    Chunk.device_type = property(lambda self: "cuda")
    ChunkManager.move_chunk = lambda self, chunk, device, force_copy=False, async_move=False: None


def _batch_norm() -> None:
    """TorchDDPPlugin turns every BatchNorm into torch's SyncBatchNorm, whose kernels are CUDA only.

    Left as it is, each process normalises by its own micro-batch: the run says so, and GroupNorm does without.
    """
    torch.nn.SyncBatchNorm.convert_sync_batchnorm = classmethod(lambda cls, module, process_group=None: module)


def _adam_kernel() -> None:
    """HybridAdam compiles a C++ kernel when it is made, which needs a compiler and time; this is the same formula."""
    from colossalai.nn.optimizer import cpu_adam

    class Loader:
        def load(self) -> Any:
            return _AdamKernel

    cpu_adam.CPUAdamLoader = Loader


class _AdamKernel:
    """Stands in for the compiled module and for its class `CPUAdamOptimizer`."""

    def __init__(
        self, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, adamw_mode: bool
    ) -> None:
        self.adamw_mode = adamw_mode

    def step(
        self,
        step: int,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        bias_correction: bool,
        parameter: Tensor,
        gradient: Tensor,
        mean: Tensor,
        square: Tensor,
        gradient_divisor: float,
    ) -> None:
        """Update fp32 `parameter`, `mean` and `square`, all (n,), by `gradient` (n,) of any float type."""
        gradient = gradient.to(parameter.dtype)
        if gradient_divisor > 0:
            gradient = gradient / gradient_divisor
        if self.adamw_mode:
            parameter.mul_(1 - lr * weight_decay)
        elif weight_decay:
            gradient = gradient.add(parameter, alpha=weight_decay)
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        first, second = (1 - beta1**step, 1 - beta2**step) if bias_correction else (1.0, 1.0)
        parameter.addcdiv_(mean, (square / second).sqrt_().add_(eps), value=-lr / first)


_AdamKernel.CPUAdamOptimizer = _AdamKernel  # type: ignore[attr-defined]
