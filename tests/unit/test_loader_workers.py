"""The same global stream whoever reads it: ranks, worker processes, threads, forks, other processes."""

import copy
import os
import threading
from pathlib import Path

import pytest
import torch
from tests.unit.loader_data import make_loader, same, take, write_pairs
from torch.utils.data import DataLoader

from mmfast.data import Loader, Source
from mmfast.data.batch import ROW_DTYPES, Batch
from mmfast.errors import UsageError

FORK_OF_THREADS = (
    "ignore:This process .* is multi-threaded:DeprecationWarning"  # Python 3.12 and later
)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "train")


def through_workers(loader: Loader, num_workers: int, **settings) -> DataLoader:
    return DataLoader(loader, batch_size=None, num_workers=num_workers, **settings)


def rows_of(batch: Batch) -> list[dict[str, torch.Tensor]]:
    return [
        {name: tensor[row] for name, tensor in batch.rows.items()} for row in range(batch.num_rows)
    ]


@pytest.mark.filterwarnings(FORK_OF_THREADS)
@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 8])
def test_ranks_and_workers_share_out_one_global_stream(
    prefix: Path, world_size: int, num_workers: int
) -> None:
    whole = take(make_loader(prefix), 7)
    ranks = []
    for rank in range(world_size):
        loader = make_loader(
            prefix, rank=rank, world_size=world_size, prefetch_batches=(rank + num_workers) % 3
        )
        if rank % 2:  # threads run already when the workers are forked
            take(loader, 1)
            loader.load_state_dict(make_loader(prefix).state_dict())
        batches = through_workers(loader, num_workers)
        ranks.append([batch for batch, _ in zip(batches, range(7), strict=False)])
    for step, batch in enumerate(whole):
        parts = [rows_of(batches[step]) for batches in ranks]
        for index, expected in enumerate(rows_of(batch)):
            row = parts[index % world_size][index // world_size]
            assert all(torch.equal(row[name], expected[name]) for name in ROW_DTYPES)
        assert all(batches[step].state == batch.state for batches in ranks)


@pytest.mark.filterwarnings(FORK_OF_THREADS)
def test_a_stream_through_workers_ends_where_it_does_without(prefix: Path) -> None:
    once = [Source(prefix, max_epochs=1)]
    expected = list(make_loader(prefix, sources=once))
    for num_workers in (1, 2, 3):
        found = list(through_workers(make_loader(prefix, sources=once), num_workers))
        assert len(found) == len(expected)
        assert all(map(same, found, expected))


@pytest.mark.filterwarnings(FORK_OF_THREADS)
def test_the_state_of_a_batch_continues_the_stream_whoever_made_it(prefix: Path) -> None:
    unbroken = take(make_loader(prefix), 14)
    for num_workers, again_with in [(0, 2), (2, 0), (2, 3)]:
        for step in (0, 1, 6):
            batches = iter(through_workers(make_loader(prefix), num_workers))
            for _ in range(step + 1):
                state = next(batches).state
            del batches
            loader = make_loader(prefix)
            loader.load_state_dict(state)
            again = iter(through_workers(loader, again_with))
            for expected in unbroken[step + 1 : step + 6]:
                assert same(next(again), expected)
            del again


@pytest.mark.filterwarnings(FORK_OF_THREADS)
def test_iterating_again_over_workers_begins_where_the_loader_stands(prefix: Path) -> None:
    loader = make_loader(prefix)
    expected = take(make_loader(prefix), 6)
    take(loader, 2)
    batches = through_workers(loader, 2, persistent_workers=True)
    for _ in range(2):
        for expected_batch, batch in zip(expected[2:5], batches, strict=False):
            assert same(batch, expected_batch)
    assert loader.state_dict() == expected[1].state


def test_spawned_workers_open_the_data_anew(prefix: Path) -> None:
    once = [Source(prefix, max_epochs=1)]
    loader = make_loader(prefix, sources=once)
    take(loader, 1)
    expected = list(make_loader(prefix, sources=once))
    # To the end: torch's spawned workers may abort where they are stopped while they send a batch.
    found = list(through_workers(loader, 2, multiprocessing_context="spawn"))
    assert len(found) == len(expected) - 1
    assert all(map(same, found, expected[1:]))


def test_a_copied_loader_goes_on_at_the_same_position(prefix: Path) -> None:
    loader = make_loader(prefix, packing="concat", prefetch_batches=0)
    take(loader, 3)
    other = copy.deepcopy(loader)
    assert other.state_dict() == loader.state_dict()
    assert all(map(same, take(other, 3), take(loader, 3)))


@pytest.mark.parametrize("packing", ["best_fit", "concat", "none"])
def test_a_state_continues_the_stream_at_every_step_with_any_batch_size(
    prefix: Path, packing: str
) -> None:
    settings = {"packing": packing, "overlong": "split", "sources": [Source(prefix, max_epochs=2)]}
    rows = [
        row
        for batch in make_loader(prefix, global_batch_bins=1, **settings)
        for row in rows_of(batch)
    ]
    steps = list(make_loader(prefix, global_batch_bins=4, **settings))
    for step, batch in enumerate(steps[:-1]):
        num_bins = 1 + step % 5
        again = make_loader(
            prefix, global_batch_bins=num_bins, prefetch_batches=step % 3, **settings
        )
        again.load_state_dict(batch.state)
        position = 4 * (step + 1)
        for row in rows_of(next(iter(again))):
            expected = rows[position] if position < len(rows) else None
            if expected is None:
                assert not row["document_ids"].any()
            else:
                assert all(torch.equal(row[name], expected[name]) for name in ROW_DTYPES)
            position += 1


@pytest.mark.filterwarnings(FORK_OF_THREADS)
@pytest.mark.parametrize("prefetch_batches", [0, 2])
def test_a_fork_after_the_first_batch_continues_in_both_processes(
    prefix: Path, prefetch_batches: int
) -> None:
    expected = take(make_loader(prefix), 6)
    loader = make_loader(prefix, prefetch_batches=prefetch_batches)
    take(loader, 3)
    child = os.fork()
    if child == 0:
        alive = threading.Timer(60, os._exit, args=[1])
        alive.start()
        os._exit(0 if all(map(same, take(loader, 3), expected[3:])) else 1)
    assert all(map(same, take(loader, 3), expected[3:]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("prefetch_batches", [0, 1, 3])
def test_batches_are_filled_into_the_callers_tensors(prefix: Path, prefetch_batches: int) -> None:
    expected = take(make_loader(prefix), 5)
    loader = make_loader(prefix, prefetch_batches=prefetch_batches)
    mine = next(iter(make_loader(prefix, seed=8)))
    for expected_batch in expected:
        filled = loader.next_into(mine)
        assert same(filled, expected_batch)
        assert filled.state == expected_batch.state
        for name, tensor in filled.rows.items():
            assert tensor.data_ptr() == mine.rows[name].data_ptr()
    ended = make_loader(prefix, sources=[Source(prefix, max_epochs=1)])
    while ended.next_into(mine) is not None:
        pass


def test_tensors_that_cannot_be_filled_are_refused_by_name(prefix: Path) -> None:
    import dataclasses

    loader = make_loader(prefix, prefetch_batches=0)
    mine = next(iter(make_loader(prefix)))
    for name, tensor, text in [
        ("labels", mine.labels.int(), "labels must be .* int64 .*int32"),
        ("input_ids", mine.input_ids[:2], r"input_ids must be .*\[5, 128\], found \[2, 128\]"),
        (
            "loss_weights",
            mine.loss_weights.t().contiguous().t(),
            "loss_weights must be .*contiguous",
        ),
        ("position_ids", mine.position_ids.to("meta"), "position_ids must be in CPU memory"),
    ]:
        with pytest.raises(ValueError, match=text):
            loader.next_into(dataclasses.replace(mine, **{name: tensor}))
    assert same(loader.next_into(mine), next(iter(make_loader(prefix))))


@pytest.mark.parametrize("prefetch_batches", [0, 2])
def test_an_allocator_provides_the_memory_of_batches(prefix: Path, prefetch_batches: int) -> None:
    made: list[int] = []

    def allocate(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        tensor = torch.full(shape, 77, dtype=dtype)
        made.append(tensor.data_ptr())
        return tensor

    expected = take(make_loader(prefix), 5)
    loader = make_loader(prefix, prefetch_batches=prefetch_batches, allocate=allocate)
    for number, (batch, expected_batch) in enumerate(zip(loader, expected, strict=False), start=1):
        assert same(batch, expected_batch)
        assert all(tensor.data_ptr() in made for tensor in batch.rows.values())
        assert len(made) <= 6 * (number + prefetch_batches + 1)


def test_memory_of_a_batch_is_used_again_once_nobody_holds_it(prefix: Path) -> None:
    loader = make_loader(prefix, prefetch_batches=0)
    batches = iter(loader)
    first = next(batches)
    kept = first.labels.clone()
    view, place = first.labels[1:2], first.labels.data_ptr()
    del first
    others = [next(batches) for _ in range(3)]
    assert all(batch.labels.data_ptr() != place for batch in others)
    assert torch.equal(view, kept[1:2])
    del view
    places = {batch.labels.data_ptr() for batch in [next(batches)]}
    assert place in places


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device can pin memory")
def test_pinned_memory_needs_a_cuda_device(prefix: Path) -> None:
    with pytest.raises(UsageError, match="pin_memory=True needs a CUDA device"):
        make_loader(prefix, pin_memory=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinned_batches_copied_without_waiting_arrive_whole(prefix: Path) -> None:
    expected = take(make_loader(prefix), 50)
    loader = make_loader(prefix, pin_memory=True)
    moved = []
    for batch, _ in zip(loader, expected, strict=False):
        assert batch.input_ids.is_pinned()
        moved.append(batch.to("cuda", non_blocking=True))
    torch.cuda.synchronize()
    for batch, expected_batch in zip(moved, expected, strict=True):
        assert same(batch.to("cpu"), expected_batch)
