"""Names and groups of layers, and which of them a configuration chooses."""

from __future__ import annotations

import pytest

from frs.errors import ExportError
from frs.export.layers import Layer, find_layers, first_layers, group_of, groups, last_layers, named
from tests.frs.export.small_graph import two_layers

NAMES = ["backbone.body.conv1", "backbone.body.layer1.0.conv1", "fpn.output.0", "class_tower.0", "class_output"]


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("backbone.body.conv1", "backbone.conv1"),
        ("backbone.body.layer3.1.conv2", "backbone.layer3"),  # ResNet
        ("backbone.body.layer2.0.downsample.0", "backbone.layer2"),
        ("backbone.body.conv_stem", "backbone.conv_stem"),
        ("backbone.body.blocks.4.2.conv_pwl", "backbone.blocks.4"),  # EfficientNet, MobileNet
        ("backbone.body.stages_2.blocks.0.conv_dw", "backbone.stages_2"),  # ConvNeXt
        ("backbone.body.stem_0", "backbone.stem_0"),
        ("backbone.body.s3.b2.conv1.conv", "backbone.s3"),  # RegNet
        ("fpn.lateral.1", "fpn"),
        ("fpn.extra.0", "fpn"),
        ("class_tower.3", "class_tower"),
        ("box_output", "box_output"),
        ("rpn.tower.0", "rpn.tower"),
        ("rpn.class_output", "rpn.class_output"),
        ("roi_head.fc.0", "roi_head.fc"),
    ],
)
def test_groups(name: str, group: str) -> None:
    assert group_of(name) == group


def test_layers_of_a_graph() -> None:
    model = two_layers()
    layers = find_layers(model)
    assert layers == (Layer("first", "first", ("conv_1",)), Layer("second", "second", ("conv_2",)))
    assert groups(layers) == {"first": layers[:1], "second": layers[1:]}
    assert first_layers(model, layers) == {"first"}
    assert last_layers(model, layers) == {"second"}


def test_patterns() -> None:
    assert named([], NAMES) == frozenset()
    assert named(["class_*", "fpn.output.0"], NAMES) == {"class_tower.0", "class_output", "fpn.output.0"}
    assert named(["backbone.*"], NAMES) == set(NAMES[:2])
    assert named(["*"], NAMES) == set(NAMES)


def test_a_pattern_that_names_nothing_is_an_error_with_the_names() -> None:
    with pytest.raises(ExportError, match=r"names 'class_ouput'.*did you mean 'class_output'\?") as raised:
        named(["fpn.*", "class_ouput"], NAMES)
    assert all(name in str(raised.value) for name in NAMES)
    with pytest.raises(ExportError, match=r"names 'Class_\*', and there is no such layer"):
        named(["Class_*"], NAMES)  # names are taken as they are written
