"""Whatever text is given, the loader answers with a configuration or a ConfigError."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.hashing import canonical
from pipeline.loading import load_config
from stages import graph

FULL = yaml.safe_load(Path("configs/quickstart.yaml").read_text())
quick = settings(
    max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.text(max_size=12)
    | st.sampled_from(
        ["auto", "imagenet", "package:x", "../x", "~nobody", "coco", "trees", "1e999", "\0", ".nan", "resnet18"]
    )
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | scalars, inner, max_size=3),
)
yaml_text = st.text(alphabet=st.sampled_from("ab:1-.[]{}&*!<>|?#%@`'\",\n \t~=0x\0\ud800é"), max_size=60)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


PLACES = [path for path in places(FULL) if path]


def loads(path: Path, overrides: list[str]) -> None:
    """What is let through must be good enough for the plan: every section has a JSON text, and the file a round trip."""
    try:
        config = load_config(path, overrides)
    except ConfigError:
        return
    assert isinstance(config, Config)
    for stage in graph(config):
        for key in stage.reads:
            canonical(config.section(key)).encode()
    path.write_text(config.to_yaml())
    assert load_config(path) == config


@quick
@given(text=yaml_text)
def test_any_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    loads(path, [])


@quick
@given(content=st.binary(max_size=60))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    loads(path, [])


@quick
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), values), min_size=1, max_size=3))
def test_a_valid_configuration_with_other_values_in_it(
    tmp_path: Path, changes: list[tuple[tuple[Any, ...], Any]]
) -> None:
    document = copy.deepcopy(FULL)
    for place, value in changes:
        node = document
        for key in place[:-1]:
            if not isinstance(node, dict) or key not in node:
                break
            node = node[key]
        else:
            if isinstance(node, dict):
                node[place[-1]] = value
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    loads(path, [])


@quick
@given(
    keys=st.lists(st.sampled_from([*"ab", "", *{str(key) for path in PLACES for key in path}]), max_size=4),
    text=yaml_text,
)
def test_any_override(tmp_path: Path, keys: list[str], text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(FULL))
    loads(path, [f"{'.'.join(keys)}={text}"])


@quick
@given(place=st.sampled_from(PLACES), value=values)
def test_a_known_key_overridden_by_anything(tmp_path: Path, place: tuple[Any, ...], value: Any) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(FULL))
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
    loads(path, [f"{'.'.join(map(str, place))}={text}"])


@pytest.mark.parametrize(
    "tag", ["int", "float", "bool", "null", "timestamp", "binary", "set", "omap", "pairs", "merge"]
)
@pytest.mark.parametrize("text", ["''", "x", "[x]", "{x: y}", "[[x]]", "-", "0x", "2024-13-45", "1:61"])
def test_a_tag_on_what_is_not_of_it(tmp_path: Path, tag: str, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"a: !!{tag} {text}\n")
    loads(path, [])
