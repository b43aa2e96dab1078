"""How much of a step's time a collective is under way, measured by torch's profiler over a few steps."""

from typing import Any

import torch


class CommunicationClock:
    """Profiles some steps, and tells the share of their time in which at least one collective was under way.

    Waiting for a process that comes late counts as communication: it is time in which nothing is computed by the one
    who waits. Where communication runs beside the backward pass (DDP, and ZeRO on GPUs) the share is not the time lost.

    Args:
        first_step: steps before it warm up.
        num_steps: how many to profile; 0 for none.

    Attributes:
        share: between 0 and 1; None before it is known.
    """

    def __init__(self, first_step: int, num_steps: int) -> None:
        self.first_step, self.last_step = first_step, first_step + num_steps
        self.share: float | None = None
        self._profiler: Any = None

    def tick(self, step: int) -> None:
        """Call it before each step with the number of steps made in this epoch; it measures in one epoch only."""
        if step == self.first_step and self.last_step > step and self.share is None:
            self._profiler = torch.autograd.profiler.profile(use_kineto=True, use_device=_device())
            self._profiler.__enter__()
        elif self._profiler is not None and step == self.last_step:
            self.stop()

    def stop(self) -> None:
        """End the measurement, also where a run has fewer steps."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.__exit__(None, None, None)
        events = profiler.function_events
        spans = [(event.time_range.start, event.time_range.end) for event in events]
        own = [span for event, span in zip(events, spans, strict=True) if is_collective(event.name)]
        if spans:
            wall = max(end for _, end in spans) - min(start for start, _ in spans)
            self.share = covered(own) / wall if wall else None


def is_collective(name: str) -> bool:
    """Whether an event of the profiler is a collective on its way: Gloo's record of one, or NCCL's kernel."""
    return name.startswith("gloo:") or name.startswith("nccl:") or "ncclDevKernel" in name


def covered(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals, in their unit."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


def _device() -> str | None:
    return "cuda" if torch.cuda.is_available() and torch.cuda.is_initialized() else None
