"""Batches by length: every review once an epoch, the same for any number of processes, with little padding."""

from typing import Any

import pytest
import torch
from trainyard_shared.tensors.lengths import LengthBatches, Sequences

CPU = torch.device("cpu")
N = 403
# As in real reviews: few are long.
LENGTHS = (torch.randn(N, generator=torch.Generator().manual_seed(0)).mul(0.7).exp() * 60).long().clamp(3, 256)


def batches(rank: int = 0, world_size: int = 1, **changes: Any) -> LengthBatches:
    settings: dict[str, Any] = {"global_batch_size": 16, "micro_batch_size": 8, "seed": 0, "window": 5} | changes
    return LengthBatches(LENGTHS, rank=rank, world_size=world_size, **settings)


def counted(one: LengthBatches, epoch: int = 0, used: int = 0) -> list[list[int]]:
    """Samples of each step that count, of one process."""
    return [
        [i for micro in micro_batches if micro.weight for i in micro.index.tolist()]
        for _, micro_batches in one.epoch(epoch, used)
    ]


@pytest.mark.parametrize(("micro_batch_size", "max_tokens"), [(8, None), (3, None), (100, 600), (8, 100), (1, None)])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_processes_together_have_each_sample_of_a_step_once(
    world_size: int, micro_batch_size: int, max_tokens: int | None
) -> None:
    settings = {"micro_batch_size": micro_batch_size, "max_tokens": max_tokens}
    whole = [batch.tolist() for batch in batches().global_batches(epoch=2)]
    assert sorted(i for batch in whole for i in batch) == list(range(N))
    assert [len(batch) for batch in whole] == [16] * 25 + [3], "26 steps; the last has what is left"
    shares = [list(batches(rank, world_size, **settings).epoch(2)) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        sizes = {share[step][0] for share in shares}
        assert sizes == {len(batch)}
        assert len({len(share[step][1]) for share in shares}) == 1, "all have the same number of micro-batches"
        found = [i for share in shares for m in share[step][1] if m.weight for i in m.index.tolist()]
        assert sorted(found) == sorted(batch)
        for share in shares:
            for micro in share[step][1]:
                assert 1 <= len(micro.index) <= micro_batch_size
                longest = int(LENGTHS[micro.index].max())
                assert max_tokens is None or len(micro.index) == 1 or len(micro.index) * longest <= max_tokens
                assert micro.weight == 1.0 or len(micro.index) == 1


def test_process_without_a_sample_keeps_step_with_one_that_does_not_count() -> None:
    # The last step has 3 samples, for 5 processes.
    last = [list(batches(rank, 5).epoch(0))[-1] for rank in range(5)]
    assert [micro_batches[0].weight for _, micro_batches in last] == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("used", [0, 16, 5 * 16, 24 * 16, 25 * 16])
def test_the_rest_of_an_epoch_is_what_a_resumed_run_needs(used: int) -> None:
    one = batches()
    assert counted(one, 1, used) == counted(one, 1)[used // 16 :]
    assert one.num_steps(used) == len(counted(one, 1, used)) == 26 - used // 16


def test_epochs_and_seeds_differ_and_come_again() -> None:
    assert counted(batches(), 0) != counted(batches(), 1)
    assert counted(batches(seed=1), 0) != counted(batches(), 0)
    assert counted(batches(), 1) == counted(batches(), 1)


def padding(one: LengthBatches) -> float:
    real = padded = 0
    for _, micro_batches in one.epoch(0):
        for micro in micro_batches:
            real += int(LENGTHS[micro.index].sum())
            padded += len(micro.index) * int(LENGTHS[micro.index].max())
    return 1 - real / padded


def test_sorting_spares_padding() -> None:
    # Measured: a third without sorting, 8 % with.
    assert padding(batches(window=1, micro_batch_size=16)) > 0.3
    assert padding(batches(window=25, micro_batch_size=16)) < 0.1


def test_lengths_come_in_any_order_from_step_to_step() -> None:
    means = [float(LENGTHS[batch].float().mean()) for batch in batches(window=25).global_batches(0)[:25]]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)


def test_processes_have_equal_work() -> None:
    tokens = [
        [sum(len(m.index) * int(LENGTHS[m.index].max()) for m in micros) for _, micros in batches(rank, 2).epoch(0)]
        for rank in (0, 1)
    ]
    for own, other in zip(tokens[0][:-1], tokens[1][:-1], strict=True):
        assert own == pytest.approx(other, rel=0.35), "one step"
    assert sum(tokens[0]) == pytest.approx(sum(tokens[1]), rel=0.1), "all steps"


def test_lengths_count_as_padded() -> None:
    one = batches(multiple_of=8, max_tokens=64, micro_batch_size=100)
    for _, micro_batches in one.epoch(0):
        for micro in micro_batches:
            width = -(-int(LENGTHS[micro.index].max()) // 8) * 8
            assert len(micro.index) == 1 or len(micro.index) * width <= 64


def test_padded_sequences() -> None:
    sequences = Sequences.from_lists([[1, 2, 3], [4], [], [5, 6, 7, 8, 9]])
    assert len(sequences) == 4
    ids, mask = sequences.padded(torch.tensor([1, 0]), pad_id=99, device=CPU)
    assert ids.tolist() == [[4, 99, 99], [1, 2, 3]]
    assert mask is not None
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    assert ids.dtype == torch.int64
    ids, mask = sequences.padded(torch.tensor([3, 2]), pad_id=0, device=CPU, multiple_of=4)
    assert ids.tolist() == [[5, 6, 7, 8, 9, 0, 0, 0], [0] * 8]
    assert sequences.padded(torch.tensor([0, 0]), pad_id=0, device=CPU)[1] is None, "nothing is padded"


def test_joined_sequences() -> None:
    joined = Sequences.joined(
        [Sequences.from_lists([[1, 2], [3]]), Sequences.from_lists([]), Sequences.from_lists([[4]])]
    )
    assert joined.lengths.tolist() == [2, 1, 1]
    assert joined.padded(torch.tensor([2, 0]), 0, CPU)[0].tolist() == [[4, 0], [1, 2]]


def test_ids_and_lengths_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="3 ids do not go with lengths that add up to 4"):
        Sequences(torch.zeros(3, dtype=torch.int32), torch.tensor([4]))
