"""A training's keys: which belong together, and what is said where they do not."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.training import TrainConfig

STEP = {"schedule": "step", "milestones": [8, 11]}


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"momentum": 0.8}, "momentum: only for optimizer: sgd, and optimizer is adamw; leave out the one or change"),
        ({"bias_decay": False}, "bias_decay: only for optimizer: sgd, and optimizer is adamw"),
        ({"milestones": [8]}, "milestones: only for schedule: step, and schedule is one_cycle"),
        ({"warmup_steps": 9, "warmup_ratio": 0.5}, "warmup_steps, warmup_ratio: only for schedule: step"),
        ({**STEP, "warmup": 0.2}, "warmup: only for schedule: one_cycle, and schedule is step"),
        ({"schedule": "step"}, "milestones, rising and below epochs (12), e.g. [8, 11] of 12, got []"),
        ({"schedule": "step", "milestones": [8, 12]}, "got [8, 12]"),
        ({"schedule": "step", "milestones": [8, 8]}, "got [8, 8]"),
        ({"batch": 8, "accumulate": 3}, "batch (8) must be a multiple of devices times nodes times accumulate (3)"),
        ({"schedule": "step", "milestones": [0, 8]}, "greater than or equal to 1"),
    ],
)
def test_contradicting_keys_are_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as error:
        TrainConfig(**keys)
    assert sentence in str(error.value)


@pytest.mark.parametrize("keys", [{}, STEP, {**STEP, "optimizer": "sgd", "momentum": 0.8, "warmup_shape": "constant"}])
def test_a_resolved_section_is_one_that_is_taken(keys: dict[str, Any]) -> None:
    config = TrainConfig(**keys)
    assert TrainConfig(**config.model_dump(mode="json")) == config
