"""Batch normalisation over the images of all processes, on devices where torch's own SyncBatchNorm does not run.

`torch.nn.SyncBatchNorm` needs CUDA. This one shows what it does, in three lines of all-reduce: with it, N processes
with b images each normalise exactly as one process with N*b images would.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class AllReduceSum(torch.autograd.Function):
    """The sum over all processes, with a gradient.

    Every process's output holds every process's input, so the gradient of an input is the sum of the gradients of all
    outputs: the backward pass is an all-reduce too.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Return the sum; same shape as `values`."""
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the sum of all processes' gradients."""
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of all processes; same parameters, buffers and state dict."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W) over the images of all processes; when evaluating, by the running statistics."""
        if not self.training:
            return super().forward(x)
        # x: (N, C, H, W). The sums of all processes, not the mean of their means: shares may differ in size.
        count = x.new_tensor([x.numel() / x.shape[1]])
        sums = torch.cat([x.sum(dim=(0, 2, 3)), x.square().sum(dim=(0, 2, 3)), count])
        sums = AllReduceSum.apply(sums)
        total, squares, count = sums[: x.shape[1]], sums[x.shape[1] : -1], sums[-1]
        mean = total / count
        variance = squares / count - mean.square()
        with torch.no_grad():
            unbiased = variance * count / (count - 1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]


def convert(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace every BatchNorm2d in `model` by one that synchronises; torch's own on CUDA."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if dist.get_world_size() > 1:
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = SyncBatchNorm2d
    return model
