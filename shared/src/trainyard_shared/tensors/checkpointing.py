"""Checkpoints of which every process writes or reads its own part. All functions here are called by all processes."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from trainyard_shared.checkpoints import CheckpointFolder
from trainyard_shared.errors import TrainyardError


def newest_for_all(checkpoints: CheckpointFolder, warn: Callable[[str], None]) -> Path | None:
    """Return the newest intact checkpoint, the same on every process: rank 0 looks, all get its answer.

    Raises:
        TrainyardError: what rank 0 has to complain of, on every process.
    """
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = checkpoints.newest(warn)
        except TrainyardError as error:
            answer[1] = error
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


@contextlib.contextmanager
def written_by_all(checkpoints: CheckpointFolder, step: int, **facts: Any) -> Iterator[Path]:
    """Give every process the same folder to write its part into; it becomes the checkpoint once all have.

    Nobody goes on before the checkpoint is on the disk.
    """
    with contextlib.ExitStack() as stack:
        place: list[Any] = [None]
        if dist.get_rank() == 0:
            place[0] = stack.enter_context(checkpoints.write(step, **facts))
        dist.broadcast_object_list(place, src=0)
        yield place[0]
        dist.barrier()  # all parts are there: rank 0 may close the folder
    dist.barrier()
