from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pytest
import torch

from frs.data import CocoDataset, evaluation_batches, read_coco
from frs.data.loader import Batch, TrainingLoader, _handed_over, worker_error
from frs.data.transforms import Augment
from frs.detectors.base import Targets
from frs.errors import DataError, TrainingError
from tests.frs.data.test_coco import GOOD, changed, folder, write
from tests.frs.training.conftest import draw_rectangles

__all__ = ["folder"]  # a fixture

AUGMENT = Augment(flip_horizontal=True, flip_vertical=True, quarter_turns=True, scale=(0.7, 1.4), colour=0.3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    place = tmp_path_factory.mktemp("loader")
    draw_rectangles(place, count=14)
    return read_coco(place / "annotations.json", place / "images")


def loader(data: CocoDataset, **changes: Any) -> TrainingLoader:
    fields: dict[str, Any] = {"height": 96, "width": 96, "batch": 3, "seed": 1, "augment": AUGMENT}
    fields |= {"drop_empty": False, "workers": 0}
    return TrainingLoader(data, **{**fields, **changes})


def same(one: Batch, other: Batch) -> bool:
    tensors = zip(vars(one.targets).values(), vars(other.targets).values(), strict=True)
    return torch.equal(one.images, other.images) and all(a is b is None or torch.equal(a, b) for a, b in tensors)


def test_shapes_types_and_padding(data: CocoDataset) -> None:
    batch = next(loader(data).epoch(0))
    assert (batch.images.shape, batch.images.dtype) == ((3, 3, 96, 96), torch.uint8)
    assert batch.targets.boxes.shape == (3, batch.targets.labels.shape[1], 4)
    assert not bool(batch.targets.boxes[~batch.targets.valid].any())
    assert len(batch.image_ids) == 3


def test_an_epoch_takes_every_image_once_but_for_the_last_batch(data: CocoDataset) -> None:
    made = loader(data)
    assert made.steps_per_epoch == 4
    seen = [i for batch in made.epoch(0) for i in batch.image_ids]
    assert len(seen) == len(set(seen)) == 12
    assert seen != [i for batch in made.epoch(1) for i in batch.image_ids]


def test_any_step_can_be_had_without_those_before_it(data: CocoDataset) -> None:
    whole = list(loader(data).epoch(2))
    late = list(loader(data).epoch(2, start_step=3))
    assert len(late) == 1
    assert same(whole[3], late[0])
    assert not same(whole[3], list(loader(data, seed=2).epoch(2))[3])


def test_worker_processes_give_the_same_bytes(data: CocoDataset) -> None:
    for one, other in zip(loader(data).epoch(1), loader(data, workers=2).epoch(1), strict=True):
        assert one.image_ids == other.image_ids
        assert same(one, other)


def test_boxes_lie_on_what_is_drawn(data: CocoDataset) -> None:
    plain = loader(data, augment=Augment(flip_horizontal=True, quarter_turns=True))
    batch = next(plain.epoch(0))
    bright = batch.images[:, 0] > 150
    for i in range(3):
        x0, y0, x1, y1 = batch.targets.boxes[i, 0].round().int().tolist()
        assert float(bright[i, y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].float().mean()) > 0.98


def test_crowd_regions_are_ignored_and_empty_images_kept_or_dropped(folder: Path) -> None:
    data = read_coco(write(folder, GOOD), folder / "images")
    batch = next(loader(data, augment=Augment(flip_horizontal=False)).epoch(0))
    first = batch.image_ids.index(4)
    assert batch.targets.valid[first].tolist() == [True, False]
    assert batch.targets.ignore[first].tolist() == [False, True]
    assert not bool(batch.targets.valid[batch.image_ids.index(9)].any())
    with pytest.raises(DataError, match=r"train\.batch is 3, but there are only 2 images"):
        loader(data, drop_empty=True)
    assert loader(data, drop_empty=True, batch=2).steps_per_epoch == 1


def test_an_image_that_breaks_later_is_an_error_and_not_a_hang(folder: Path) -> None:
    data = read_coco(write(folder, changed("images", 0, "width", value=40)), folder / "images")
    (folder / "images" / "a.png").write_text("no image")
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"a\.png: cannot be read") as caught:
            list(loader(data, workers=workers).epoch(0))
        assert "Traceback" not in str(caught.value)


def test_evaluation_batches_are_full_and_list_every_image_once(data: CocoDataset) -> None:
    batches = list(evaluation_batches(data, 96, 128, 4))
    assert [pixels.shape for pixels, _, _ in batches] == [(4, 3, 96, 128)] * 4
    assert [image.id for _, _, images in batches for image in images] == [image.id for image in data.images]
    pixels, mappings, images = batches[-1]
    assert (len(mappings), len(images)) == (2, 2)
    np.testing.assert_array_equal(pixels[1], pixels[3])


@pytest.mark.parametrize("torn", [ConnectionResetError(104, "reset"), EOFError(), UnpicklingError("truncated")])
def test_a_batch_that_is_lost_on_its_way_is_a_dead_process(torn: Exception) -> None:
    def batches() -> Iterator[int]:
        yield 1
        raise torn

    handed = _handed_over(batches())  # type: ignore[arg-type]
    assert next(handed) == 1
    with pytest.raises(TrainingError, match=rf"a process that loads images has died \({type(torn).__name__}\)"):
        next(handed)


@pytest.mark.parametrize(
    ("torch_says", "we_say"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "has died (DataLoader worker (pid 7) is killed by"),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "has died (DataLoader worker (pid(s) 7, 8) exited"),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible", "(/dev/shm)"),
        ("Caught RuntimeError in DataLoader worker process 0.\nunable to write: No space left on device", "(/dev/shm)"),
        ("DataLoader timed out after 300 seconds", "has not answered for 300 s"),
        ("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback", None),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_what_torch_says_of_its_workers_in_words(torch_says: str, we_say: str | None) -> None:
    explained = worker_error(RuntimeError(torch_says))
    assert explained is None if we_say is None else we_say in str(explained)


@pytest.mark.parametrize("quiet", [True, False])
def test_a_worker_whose_training_has_gone_says_nothing(quiet: bool) -> None:
    """The thread that hands over a batch meets a connection that is closed before a word is said."""
    script = f"""
import os, socket
from multiprocessing import resource_sharer
from frs.data.loader import _leave_quietly
if {quiet}:
    _leave_quietly(0)
handle = resource_sharer.DupFd(os.open(os.devnull, os.O_RDONLY))
gone = socket.socket(socket.AF_UNIX)
gone.connect(handle._id[0])
gone.close()
os.close(handle.detach())  # asked after the other one, so that one has been answered
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert bool(done.stderr) is not quiet


def test_a_batch_is_split_into_equal_parts_or_not_at_all() -> None:
    images = torch.arange(6)[:, None, None, None].expand(6, 3, 2, 2)
    flags = torch.zeros(6, 0, dtype=torch.bool)
    targets = Targets(torch.zeros(6, 0, 4), torch.zeros(6, 0, dtype=torch.int64), flags, flags)
    batch = Batch(images, targets, tuple(range(6)))
    assert [part.image_ids for part in batch.split(3)] == [(0, 1), (2, 3), (4, 5)]
    with pytest.raises(ValueError, match="6 images in 4 equal parts"):
        batch.split(4)
