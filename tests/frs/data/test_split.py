from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from frs.data import CocoDataset
from frs.data.split import split_dataset
from frs.errors import DataError
from tests.frs.data.scenes import dataset, scene


def made(folder: Path, labels: Sequence[Sequence[int]], classes: int) -> CocoDataset:
    """An image with these labels each; what a file holds is its number, which is all that a split looks at."""
    images = [scene(i, 10, 10, [(1, 1, 4, 4)] * len(each), each) for i, each in enumerate(labels)]
    for image in images:
        (folder / image.file_name).write_text(str(image.id))
    return dataset(images, [str(i) for i in range(classes)], folder)


def per_class(data: CocoDataset) -> Counter[int]:
    return Counter(label for image in data.images for label in set(image.labels.tolist()))


def test_a_fifth_is_set_aside_and_no_image_is_on_both_sides(tmp_path: Path) -> None:
    data = made(tmp_path, [[i % 3] for i in range(90)] + [[]] * 10, classes=3)
    train, val = split_dataset(data)
    assert len(val.images) == 20
    assert {image.id for image in train.images} | {image.id for image in val.images} == set(range(100))
    assert len(train.images) == 80
    assert per_class(val) == {0: 6, 1: 6, 2: 6}
    assert sum(not len(image.boxes) for image in val.images) == 2
    assert val.categories == train.categories == data.categories


def test_every_class_that_two_images_have_is_on_both_sides(tmp_path: Path) -> None:
    data = made(tmp_path, [[0]] * 50 + [[1]] * 2 + [[2]] * 3 + [[3]], classes=4)
    train, val = split_dataset(data)
    assert per_class(train)[1] == per_class(val)[1] == 1
    assert (per_class(train)[2], per_class(val)[2]) == (2, 1)
    assert (per_class(train)[3], per_class(val)[3]) == (1, 0)


def test_an_only_image_of_a_class_is_trained_on_whatever_else_is_in_it(tmp_path: Path) -> None:
    train, _ = split_dataset(made(tmp_path, [[0]] * 20 + [[0, 1, 2]] + [[2]], classes=3))
    assert per_class(train)[1] == 1


def test_identical_files_stay_together(tmp_path: Path) -> None:
    data = made(tmp_path, [[0]] * 40, classes=1)
    for image in data.images:
        (tmp_path / image.file_name).write_text(str(image.id // 4))
    train, val = split_dataset(data)
    assert not {image.id // 4 for image in train.images} & {image.id // 4 for image in val.images}
    assert len(val.images) == 8


def test_names_and_order_do_not_matter(tmp_path: Path) -> None:
    data = made(tmp_path, [[i % 5, i % 3] for i in range(60)], classes=5)
    _, val = split_dataset(data)
    renamed = [replace(image, id=image.id + 1000, file_name=f"z{image.id}") for image in reversed(data.images)]
    for image in renamed:
        (tmp_path / image.file_name).write_text(str(image.id - 1000))
    _, again = split_dataset(replace(data, images=tuple(renamed)))
    assert {image.id for image in val.images} == {image.id - 1000 for image in again.images}


@pytest.mark.parametrize("labels", [[[0]], [[0], [1]], [[0], [], []]])
def test_what_cannot_be_both_learnt_and_measured_is_refused(tmp_path: Path, labels: list[list[int]]) -> None:
    with pytest.raises(DataError, match="no class is on two different images"):
        split_dataset(made(tmp_path, labels, classes=2))
