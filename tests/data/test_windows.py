"""Windows: which are drawn, by whom, and how a stream goes on after a checkpoint."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from scipy import stats
from toy_systems import STRIPES, WalkersConfig

from epns_pyro.data import Windows, open_store
from epns_pyro.data.writing import Identity, StoreWriter
from epns_pyro.errors import CheckpointError, ConfigError, DataError
from epns_pyro.state import Field, StateSpec

pytestmark = pytest.mark.filterwarnings("error")

TRAJECTORIES, FRAMES = 11, 9
COUNTER = StateSpec((Field("number"),))
BLOCK = 2 * FRAMES * 4  # bytes of a block of two trajectories of one float each


@pytest.fixture(scope="module")
def counter(tmp_path_factory):
    """A store whose state is 100 x trajectory + frame, so that a window says where it comes from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("epns_pyro.data.writing.CHUNK_TRAJECTORIES", 2)
        config = {"name": "recorded", "spec": {"fields": [{"name": "number"}]}, "frame_dt": 1.0}
        path = tmp_path_factory.mktemp("counter") / "store.zarr"
        writer = StoreWriter(path, Identity(config, COUNTER, 1.0))
        x = (100.0 * np.arange(TRAJECTORIES)[:, None] + np.arange(FRAMES))[..., None, None]
        writer.split("train", TRAJECTORIES, FRAMES, (1,)).append(x)
        writer.finish()
        return open_store(path)


def origins(windows: Windows, draws: int) -> np.ndarray:
    """(trajectory, start) of every window drawn."""
    numbers = np.concatenate([windows.draw().x0[:, 0, 0].numpy() for _ in range(draws)]).astype(int)
    return np.stack([numbers // 100, numbers % 100], axis=1)


def same(a, b) -> bool:
    return torch.equal(a.x0, b.x0) and torch.equal(a.path, b.path)


@pytest.mark.parametrize("memory", [2**30, 2 * BLOCK])
def test_a_window_is_a_state_and_the_frames_that_follow_it(counter, memory):
    windows = Windows(counter, "train", length=3, batch=16, memory=memory)
    assert windows.in_memory == (memory > 2 * BLOCK)
    for length in (3, 1, 8):
        windows.length = length
        for _ in range(20):
            x0, path = windows.draw()
            assert x0.shape == (16, 1, 1)
            assert path.shape == (16, length, 1, 1)
            assert x0.dtype == path.dtype == torch.float32
            assert torch.equal(path[..., 0, 0], x0[:, 0] + torch.arange(1, length + 1))


def test_windows_are_the_states_of_the_store(walkers):
    x = torch.from_numpy(walkers.read("train")).float().flatten(0, 1)
    x0, _ = Windows(walkers, "train", 1, 8).draw()
    assert all((x == state).all((1, 2)).any() for state in x0)


def test_labels_are_whole_numbers(stripes):
    x0, path = Windows(stripes, "train", 2, 4).draw()
    assert x0.dtype == path.dtype == torch.int64
    known = torch.from_numpy(stripes.read("train")).long().flatten(0, 1)
    assert all((known == state).all(-1).all(-1).all(-1).any() for state in x0)
    assert STRIPES.get(path, "cell").max() <= 3


def test_draws_are_uniform_over_trajectories_and_starts(counter):
    """A chi-squared test of 77 cells; with this seed it passes, a fresh seed would fail one time in a thousand."""
    windows = Windows(counter, "train", length=2, batch=100, first_frame=0)
    drawn = origins(windows, 200)
    counts = np.zeros((TRAJECTORIES, FRAMES - 2))
    np.add.at(counts, tuple(drawn.T), 1)
    assert counts.size == windows.count
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_a_pool_draws_every_trajectory_equally_often_in_the_long_run(counter):
    windows = Windows(counter, "train", length=1, batch=16, memory=3 * BLOCK)
    assert windows._pool.nbytes <= 3 * BLOCK
    counts = np.bincount(origins(windows, 6 * 100)[:, 0], minlength=TRAJECTORIES)
    assert counts.min() > 0.8 * counts.mean()
    assert counts.max() < 1.25 * counts.mean()


def test_a_pool_never_holds_more_than_its_memory_and_changes_block_by_block(counter):
    windows = Windows(counter, "train", length=1, batch=16, memory=2 * BLOCK + 8)
    before, changes = set(windows._resident), 0
    for _ in range(50):
        seen = set(origins(windows, 1)[:, 0] // 2)
        assert seen <= set(windows._resident)
        changes += len(set(windows._resident) - before)
        assert len(set(windows._resident) - before) <= 1
        before = set(windows._resident)
    assert 20 < changes <= 50  # a block has 2 x 8 windows: one batch, so nearly every draw brings a new one


def test_frames_before_the_first_are_left_out(counter):
    windows = Windows(counter, "train", length=1, batch=64, first_frame=3)
    starts = origins(windows, 50)[:, 1]
    assert set(starts) == set(range(3, FRAMES - 1))
    assert windows.count == TRAJECTORIES * (FRAMES - 4)


def test_the_burn_in_of_the_system_is_left_out_by_default(tmp_path):
    from epns_pyro.data import generate

    store = generate(WalkersConfig(burn_in=2), tmp_path / "store.zarr", sets=["val"])
    assert Windows(store, "val", 1, 4).first_frame == 2
    assert Windows(store, "val", 1, 4, first_frame=0).first_frame == 0


@pytest.mark.parametrize("memory", [2**30, 2 * BLOCK])
def test_the_same_seed_gives_the_same_windows_and_another_does_not(counter, memory):
    one, two, other = (Windows(counter, "train", 2, 8, seed=seed, memory=memory) for seed in (5, 5, 6))
    for _ in range(30):
        a, b, c = one.draw(), two.draw(), other.draw()
        assert same(a, b)
        assert not same(a, c)


@pytest.mark.parametrize("memory", [2**30, 3 * BLOCK])
@pytest.mark.parametrize("drawn", [0, 1, 7, 40])
def test_a_stream_goes_on_after_a_checkpoint_bit_for_bit(counter, memory, drawn):
    stream = Windows(counter, "train", 1, 4, seed=1, memory=memory)
    for _ in range(drawn):
        stream.draw()
    stream.length = 2
    file = io.BytesIO()
    torch.save(stream.state_dict(), file)
    file.seek(0)
    other = Windows(counter, "train", 1, 4, seed=99, memory=memory).load_state_dict(torch.load(file, weights_only=True))
    assert other.length == 2
    assert all(same(stream.draw(), other.draw()) for _ in range(40))


@pytest.mark.parametrize("memory", [2**30, 2 * BLOCK])
def test_two_processes_together_see_what_one_sees(counter, memory):
    alone = Windows(counter, "train", 2, 8, seed=1, memory=memory)
    ranks = [Windows(counter, "train", 2, 8, seed=1, memory=memory, rank=rank, world_size=2) for rank in (0, 1)]
    for _ in range(30):
        whole, parts = alone.draw(), [windows.draw() for windows in ranks]
        assert torch.equal(whole.x0, torch.cat([part.x0 for part in parts]))
        assert torch.equal(whole.path, torch.cat([part.path for part in parts]))


def test_iterating_is_drawing(counter):
    stream, other = (Windows(counter, "train", 1, 4) for _ in range(2))
    assert all(same(batch, other.draw()) for batch, _ in zip(stream, range(3), strict=False))


def test_impossible_windows(counter):
    words = r"set 'train' has 9 frames and windows start at frame 2 or later, so a length \(training.horizon\) is 1 to 6; found 7"
    with pytest.raises(ConfigError, match=words):
        Windows(counter, "train", 7, 4, first_frame=2)
    windows = Windows(counter, "train", 1, 4)
    with pytest.raises(ConfigError, match="is 1 to 8; found 0"):
        windows.length = 0
    with pytest.raises(ConfigError, match="batch: 7 windows cannot be shared evenly by 2 processes"):
        Windows(counter, "train", 1, 7, world_size=2)
    with pytest.raises(DataError, match=r"2 trajectories of set 'train' are read at a time and take .* more than the memory"):
        Windows(counter, "train", 1, 4, memory=BLOCK - 1)


def test_a_checkpoint_of_other_data_is_refused(counter, walkers):
    state = Windows(walkers, "val", 1, 4).state_dict()
    with pytest.raises(CheckpointError, match=r"the checkpoint was made with other data: .* was \('val', 3, 9"):
        Windows(counter, "train", 1, 4).load_state_dict(state)


# -- frames before a window ------------------------------------------------------------------------------------------------


def test_a_window_comes_with_the_frames_before_it(counter):
    """They are those before x0; before the first frame, and in a quarter of the windows, some of them are not known."""
    windows, earlier = Windows(counter, "train", length=2, batch=400, earlier=3), 3
    past, x0, path = windows.draw_with_past()
    assert past.shape == (400, earlier, 1, 1)
    assert torch.equal(path[..., 0, 0], x0[:, 0] + torch.arange(1, 3))
    numbers, frame = past[..., 0, 0], (x0[:, 0, 0] % 100).int()
    expected = x0[:, 0] + torch.arange(-earlier, 0)
    known = numbers.isfinite()
    assert torch.equal(numbers[known], expected[known])
    assert torch.equal(known, known.int().cummax(1).values.bool())  # no gaps: what is known ends at x0
    count, possible = known.sum(1), frame.clamp(max=earlier)
    assert (count <= possible).all()
    short = (count < possible)[frame >= earlier].float().mean()
    assert 0.15 < short < 0.35
    assert set(count[frame >= earlier].tolist()) == {0, 1, 2, 3}


def test_windows_without_a_past_are_drawn_as_ever(counter):
    plain, remembering = (Windows(counter, "train", length=3, batch=16, earlier=n) for n in (0, 2))
    assert all(same(plain.draw(), remembering.draw()) for _ in range(5))


def test_processes_share_windows_and_their_past(counter):
    whole = Windows(counter, "train", length=2, batch=8, earlier=2).draw_with_past()
    parts = [Windows(counter, "train", length=2, batch=8, earlier=2, rank=rank, world_size=2).draw_with_past() for rank in range(2)]
    for name in ("past", "x0", "path"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined.nan_to_num(-1), getattr(whole, name).nan_to_num(-1))


def test_strides_and_earlier_frames_exclude_each_other(counter):
    with pytest.raises(ConfigError, match="even frames"):
        Windows(counter, "train", length=2, batch=8, earlier=2, strides=(1, 2))
