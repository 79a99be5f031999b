from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from frs.detectors.published import NAMES
from pipeline.config import Config
from pipeline.detectors import RetinaNetConfig
from pipeline.errors import ConfigError
from pipeline.loading import load_config
from pipeline.plan import select
from pipeline.published import TORCHVISION_NAMES, Published
from stages import graph
from stages.teacher import external_files

SMALL: dict[str, Any] = {
    "version": 1,
    "name": "small",
    "data": {"source": "trees"},
    "teacher": {"detector": {"backbone": "resnet18"}},
    "student": {"detector": {"backbone": "resnet10t"}},
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


def test_defaults_are_filled_in_and_survive_a_round_trip(tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    again = tmp_path / "resolved.yaml"
    again.write_text(config.to_yaml())
    assert load_config(again) == config
    assert isinstance(config.student.detector, RetinaNetConfig)
    assert config.student.detector.ratios == (0.5, 1.0, 2.0)


def test_all_faults_are_named_at_once_with_place_value_and_advice(tmp_path: Path) -> None:
    path = write(tmp_path, input={"height": 250}, seed="many", export={"detection": 10})
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: 3 faults in the configuration"
    assert "  input.height: got 250; must be a multiple of 32, the stride of the backbone's last stage" in lines
    assert '  export.detection: unknown key; did you mean "detections"?' in lines
    assert any(line.startswith("  seed: got 'many'; ") and "integer" in line for line in lines)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("student.train.epoch=3", 'student.train.epoch: unknown key; did you mean "epochs"?'),
        ("data.tiles=100", 'data.tiles: unknown key; did you mean "tile"?'),
        ("name=../up", "name: got '../up'"),
        ("name=.store", "name: got '.store'"),
        ("teacher.detector.levels=4", "must agree: FRS compares the pyramids level by level"),
        ("student.detector.octaves=1", "must have the same anchors per location"),
        ("input.width=512", "quarter_turns needs input.height == input.width"),
        ("student.train.short_side=[1400]", "long_side (1333) must not be less than short_side (1400)"),
        ("student.train.multiscale=range", "multiscale: range needs short_side: [from, to], got [800]"),
        ("student.train.resize=shortest_edge", "quarter_turns is for square inputs"),
        ("teacher.train.short_side=[]", "teacher.train.short_side"),
        ("validation.resize=shortest_edge", "student.train.resize is letterbox, at which the gain is measured"),
        ("export.candidates=50", "detections (100) must not exceed candidates (50)"),
        ("distill.alpha=.nan", "distill.alpha"),
        ("profile.batches=[1, 4]", "profile.batches has 4, but export.batch is 1, and the files take no other"),
        ("profile.batches=[2, 2]", "profile: batches names one twice: [2, 2]"),
        ("profile.batches=[]", "profile.batches"),
        ("engine.target=orin", "engine.target: got 'orin'"),
        ("engine.batches=[2, 1, 8]", "batches ([2, 1, 8]): least, usual and greatest, from 1 on, in this order"),
        ("engine.batches=[0, 1, 8]", "batches ([0, 1, 8])"),
        ("student.train.augment.scale=[2, 1]", "scale must be [from, to] with 0 < from <= to"),
    ],
)
def test_what_is_refused_and_how(tmp_path: Path, override: str, sentence: str) -> None:
    student = {"detector": {"backbone": "resnet10t"}, "train": {"augment": {"quarter_turns": True}}}
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, student=student), [override])
    assert sentence in str(caught.value)
    assert caught.value.exit_code == 2


def test_any_batch_is_timed_of_a_file_that_leaves_it_open(tmp_path: Path) -> None:
    config = load_config(write(tmp_path), ["profile.batches=[1, 4]", "export.batch=null"])
    assert config.profile.batches == (1, 4)
    with pytest.raises(ConfigError, match=r"profile\.batches has 9, but engine\.batches lets engines take 1 to 8"):
        load_config(write(tmp_path), ["profile.batches=[9]", "export.batch=null"])
    assert load_config(write(tmp_path), ["profile.batches=[8]", "export.batch=8"]).profile.batches == (8,)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "a: [", "!!python/object/apply:os.system ['true']"])
def test_a_file_that_is_no_mapping_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_config(path)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read \(No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_overrides_are_yaml_and_make_sections(tmp_path: Path) -> None:
    config = load_config(write(tmp_path), ["distill.beta=1e-1", "student.train.augment.scale=[0.5, 2]", "control=no"])
    assert (config.distill.beta, config.student.train.augment.scale, config.control) == (0.1, (0.5, 2.0), False)


def test_an_override_changes_one_place_of_those_that_share_an_alias(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "version: 1\nname: aliases\ndata: {source: trees}\n"
        "teacher: {detector: &d {backbone: resnet18}, train: &t {epochs: 3, augment: &a {colour: 0.5}}}\n"
        "student: {detector: {<<: *d, fpn_channels: 64}, train: {<<: *t, epochs: 4}}\n"
    )
    config = load_config(path, ["student.train.augment.colour=1", "student.detector.backbone=resnet10t"])
    assert (config.teacher.train.augment.colour, config.student.train.augment.colour) == (0.5, 1.0)
    assert config.teacher.detector is not None
    assert (config.teacher.detector.backbone, config.student.detector.backbone) == ("resnet18", "resnet10t")
    assert (config.student.train.epochs, config.student.detector.fpn_channels) == (4, 64)


@pytest.mark.parametrize("override", ["seed", "=3", "seed.x=1", "a..b=1"])
def test_an_override_that_is_none_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_config(write(tmp_path, seed=3), [override])


def test_paths_are_relative_to_the_file_and_stay_out_of_sections(tmp_path: Path) -> None:
    teacher = {"detector": {"backbone": "resnet18", "weights": "w/r18.pth"}, "checkpoint": "teacher.safetensors"}
    config = load_config(write(tmp_path, teacher=teacher))
    assert config.teacher.checkpoint == tmp_path / "teacher.safetensors"
    assert config.teacher.detector is not None
    assert config.teacher.detector.weights == tmp_path / "w/r18.pth"
    section = config.section("teacher")
    assert "checkpoint" not in section
    assert "weights" not in section["detector"]
    assert str(tmp_path) not in str(section)


def test_a_published_checkpoint_is_a_library_and_a_name_or_a_file(tmp_path: Path) -> None:
    torchvision, mmdet, name = (
        load_config(write(tmp_path, teacher={"checkpoint": text}))
        for text in ("torchvision:w/a.pth", "mmdet:b.pth", "torchvision:fcos_resnet50_fpn")
    )
    assert torchvision.teacher.checkpoint == Published(library="torchvision", file=tmp_path / "w/a.pth")
    assert mmdet.teacher.checkpoint == Published(library="mmdet", file=tmp_path / "b.pth")
    assert name.teacher.checkpoint == Published(library="torchvision", name="fcos_resnet50_fpn")
    # A section has the library and the name; the file's content is hashed elsewhere.
    assert name.section("teacher")["checkpoint"]["name"] == "fcos_resnet50_fpn"
    assert mmdet.section("teacher")["checkpoint"] == {"library": "mmdet", "name": None}
    assert external_files(mmdet) == {"teacher.checkpoint": tmp_path / "b.pth"}
    assert external_files(name) == {}
    for config in (torchvision, mmdet, name):
        path = tmp_path / "again.yaml"
        path.write_text(config.to_yaml())
        assert load_config(path).teacher == config.teacher


@pytest.mark.parametrize(
    ("teacher", "sentence"),
    [
        ({"checkpoint": "torchvision:retinanet_resnet50"}, 'did you mean "retinanet_resnet50_fpn"?'),
        ({"checkpoint": "mmdet:"}, "expected a file after mmdet:"),
        ({"checkpoint": 5}, "expected a file, torchvision:NAME, torchvision:FILE or mmdet:FILE"),
        ({}, "teacher: needs detector"),
        ({"checkpoint": "t.safetensors", "assume": {"norm_eps": 0}}, "teacher: assume is about a checkpoint of"),
        ({"checkpoint": "mmdet:a.pth", "assume": {"pixel_mean": [1, 2]}}, "teacher.assume.pixel_mean"),
        ({"detector": {"backbone": "resnet18", "levels": 9}}, "teacher.detector.levels: got 9"),
    ],
)
def test_a_teacher_that_is_none(tmp_path: Path, teacher: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, teacher=teacher))
    assert sentence in str(caught.value)


def test_the_names_are_those_of_the_loader() -> None:
    assert TORCHVISION_NAMES == NAMES


def test_how_the_work_is_done_is_no_part_of_a_section(tmp_path: Path) -> None:
    path = write(tmp_path)
    before = load_config(path).section("teacher")
    how = (
        *("teacher.train.workers=3", "teacher.train.checkpoint_minutes=2", "teacher.train.devices=2"),
        *("teacher.train.nodes=2", "teacher.train.rendezvous=trainer-0:29500"),
        *("teacher.train.log_every=2", "teacher.train.tensorboard=true"),
    )
    assert load_config(path, how).section("teacher") == before
    same_name = load_config(path, ("teacher.detector.backbone_options.workers=3",))
    assert same_name.section("teacher") != before


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (
            ("devices=3",),
            r"batch \(8\) must be a multiple of devices times nodes times accumulate \(3\), which share it",
        ),
        (
            ("devices=4", "nodes=3", "rendezvous=a:1"),
            r"batch \(8\) must be a multiple of devices times nodes times accumulate \(12\)",
        ),
        (("nodes=2",), "rendezvous must say where they meet"),
        (("nodes=2", "rendezvous=trainer-0"), "rendezvous"),
        (("devices=0",), "devices"),
    ],
)
def test_devices_that_cannot_share_a_batch_are_refused(tmp_path: Path, keys: tuple[str, ...], sentence: str) -> None:
    path = write(tmp_path)
    with pytest.raises(ConfigError, match=sentence):
        load_config(path, [f"student.train.{key}" for key in keys])
    assert load_config(path, ["student.train.devices=4", "student.train.batch=12"]).student.train.devices == 4
    assert load_config(path, ["student.train.devices=auto"]).student.train.devices == "auto"


def test_named_weights_are_no_paths(tmp_path: Path) -> None:
    student = {"detector": {"backbone": "tf_efficientnet_lite0", "weights": "package:efficientnet-lite0"}}
    config = load_config(write(tmp_path, student=student))
    assert config.section("student.detector")["weights"] == "package:efficientnet-lite0"


def test_a_section_that_does_not_exist_is_a_key_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        load_config(write(tmp_path)).section("student.nothing")


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=str)
def test_the_shipped_configurations_are_valid(path: Path) -> None:
    assert isinstance(load_config(path), Config)


def test_of_a_given_teachers_network_only_the_claims_are_written(tmp_path: Path) -> None:
    teacher = {"checkpoint": "mmdet:fcos.pth", "detector": {"family": "fcos", "backbone": "resnet101"}}
    student = {"detector": {"family": "fcos", "backbone": "resnet10t"}}
    resolved = load_config(write(tmp_path, teacher=teacher, student=student)).to_yaml()
    (tmp_path / "again.yaml").write_text(resolved)
    assert yaml.safe_load(resolved)["teacher"]["detector"] == teacher["detector"]
    again = load_config(tmp_path / "again.yaml")
    assert again.teacher.detector is not None
    assert again.teacher.detector.model_fields_set == {"family", "backbone"}


def test_without_int8_no_stage_waits_for_it(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, quantize={"precisions": []}))
    names = [stage.name for stage in select(graph(config))]
    assert "quantize" not in names
    assert names[-1] == "report"
