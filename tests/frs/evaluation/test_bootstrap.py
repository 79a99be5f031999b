from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frs.evaluation import Gain, Row, evaluate, paired_bootstrap, verdict
from frs.evaluation.bootstrap import Matches
from tests.frs.evaluation.scenes import scene


@pytest.mark.parametrize("seed", range(6))
def test_with_every_image_once_it_is_pycocotools(tmp_path: Path, seed: int) -> None:
    annotations, rows, _ = scene(tmp_path, seed)
    matches = Matches.of(annotations, rows)
    assert matches.ap(np.ones(matches.images, dtype=np.int64)) == pytest.approx(
        evaluate(annotations, rows).AP, abs=1e-9
    )


def repeated(annotations: Path, rows: list[Row], counts: list[int], out: Path) -> tuple[Path, list[Row]]:
    """The data set in which image i really is there counts[i] times, under new ids."""
    document = json.loads(annotations.read_text())
    images: list[Any] = []
    objects: list[Any] = []
    found: list[Any] = []
    for image, count in zip(document["images"], counts, strict=True):
        for copy in range(count):
            new = image["id"] + 1000 * copy
            images.append({**image, "id": new})
            for annotation in document["annotations"]:
                if annotation["image_id"] == image["id"]:
                    objects.append({**annotation, "image_id": new, "id": len(objects) + 1})
            found += [{**row, "image_id": new} for row in rows if row["image_id"] == image["id"]]
    out.write_text(json.dumps({**document, "images": images, "annotations": objects}))
    return out, found


@pytest.mark.parametrize("seed", range(6))
def test_an_image_that_counts_twice_is_an_image_that_is_there_twice(tmp_path: Path, seed: int) -> None:
    annotations, rows, _ = scene(tmp_path, seed)
    # Equal scores are ordered by chance of the image's number; give each detection a score of its own.
    rows = [{**row, "score": row["score"] + i * 1e-7} for i, row in enumerate(rows)]
    counts = np.random.default_rng(seed + 50).integers(0, 4, 12)
    path, expanded = repeated(annotations, rows, counts.tolist(), tmp_path / "twice.json")
    assert Matches.of(annotations, rows).ap(counts) == pytest.approx(evaluate(path, expanded).AP, abs=1e-9)


def test_an_interval_holds_the_difference_and_narrows_with_agreement(tmp_path: Path) -> None:
    annotations, good, poor = scene(tmp_path, 3, images=40)
    gain = paired_bootstrap(annotations, poor, good, samples=300)
    exact = evaluate(annotations, good).AP
    other = evaluate(annotations, poor).AP
    assert exact is not None
    assert other is not None
    assert gain.difference == pytest.approx(exact - other, abs=1e-9)
    assert gain.low < gain.difference < gain.high
    assert verdict(gain) == "helped"
    same = paired_bootstrap(annotations, good, good, samples=50)
    assert (same.difference, same.low, same.high) == (0.0, 0.0, 0.0)
    assert verdict(same) == "cannot tell"


def test_it_is_reproducible_and_the_other_way_round_it_is_the_negative(tmp_path: Path) -> None:
    annotations, good, poor = scene(tmp_path, 5)
    one = paired_bootstrap(annotations, good, poor, samples=100, seed=4)
    assert one == paired_bootstrap(annotations, good, poor, samples=100, seed=4)
    other = paired_bootstrap(annotations, poor, good, samples=100, seed=4)
    assert [one.low, one.high] == pytest.approx([-other.high, -other.low])


def test_a_detector_that_finds_nothing(tmp_path: Path) -> None:
    annotations, good, _ = scene(tmp_path, 5)
    gain = paired_bootstrap(annotations, [], good, samples=50)
    assert gain.difference == pytest.approx(evaluate(annotations, good).AP)


def test_verdicts() -> None:
    def gain(low: float, high: float) -> Gain:
        return Gain((low + high) / 2, low, high, 0.95, 1000, 10)

    assert [verdict(gain(*bounds)) for bounds in ((0.1, 2), (-2, -0.1), (-1, 2))] == ["helped", "hurt", "cannot tell"]
