"""A software bill of materials for each image, and the licences of all that is in them: `make sbom`.

    python -m containers.sbom

For each lock file: asks the index for the metadata of every wheel that it names, for the image's own Python and processor;
has CycloneDX's generator write containers/sbom/<target>.cdx.json from them; and gathers the licences in docs/licences.md.
Exits with 1 where one is not allowed or not known. What a base image brings (Debian's and NVIDIA's packages) is in that
image's own list, not here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import venv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from pipeline import __version__

ROOT = Path(__file__).resolve().parents[1]
SBOM = ROOT / "containers" / "sbom"
PAGE = ROOT / "docs" / "licences.md"

TARGETS = {
    "train": ("3.11", "x86_64", 36),
    "tensorrt": ("3.12", "x86_64", 39),
    "device": ("3.11", "x86_64", 36),
    "jetson6": ("3.10", "aarch64", 35),
    "jetson7": ("3.12", "aarch64", 39),
}
"""Target -> Python, processor, and the minor version of its glibc."""

SOURCES = {"tensorrt-rtx", "tensorrt-rtx-cu13"}
"""There is no wheel of these, which hold nothing; pip builds one to see their metadata."""

KNOWN = {
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",  # an empty package that only asks for others
    "protobuf": "BSD-3-Clause",
    "pycocotools": "BSD-2-Clause",
    "torchvision": "BSD-3-Clause",
}
"""What packages say in other words than SPDX's, or not at all; each was read in its LICENSE."""
NVIDIA = {"nvidia-": "LicenseRef-NVIDIA-Proprietary", "tensorrt-rtx": "LicenseRef-NVIDIA-TensorRT"}
PROPRIETARY = "License :: Other/Proprietary License"

ALLOWED = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "LLVM-exception", "MIT", "MIT-CMU"),
    *("MPL-2.0", "PSF-2.0", "Python-2.0", "Zlib", "BSD License", "Apache Software License"),
}
"""Open source, free for any use, and no duty beyond the package itself. What is not here is read before it is added."""

_OPERATORS = re.compile(r" AND | OR | WITH |[()]")

TERMS = {
    "LicenseRef-NVIDIA-Proprietary": "the CUDA Toolkit's end user license agreement, and those of cuDNN, cuSPARSELt, NCCL and "
    "NVSHMEM: use is free; what may be passed on as part of an application is listed there. Each wheel has its own as "
    "License.txt",
    "LicenseRef-NVIDIA-TensorRT": "the Software License Agreement for NVIDIA TensorRT, LICENSE.txt in the wheels of "
    "TensorRT-RTX. The TensorRT of the images `tensorrt` and `jetson` is their bases', under the same agreement and that of "
    "NVIDIA's containers",
}
"""What is not open source and is accepted."""

HEAD = """# Third-party licences

Written by `make sbom`, from what the wheels' own metadata says. `make test` fails where a licence is not among those that
`containers/sbom.py` allows; the AGPL and those without commercial use are not. The bills of materials, in CycloneDX's
format, are in `containers/sbom/`. A base image's own packages (Debian's, NVIDIA's) are not in these lists.
"""


def main() -> None:
    SBOM.mkdir(exist_ok=True)
    for target in TARGETS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            environment = folder / "environment"
            venv.create(environment, with_pip=False)
            (site,) = environment.glob("lib/python*/site-packages")
            for item in resolved(target, folder):
                place = site / f"{item['metadata']['name'].replace('-', '_')}-{item['metadata']['version']}.dist-info"
                place.mkdir()
                (place / "METADATA").write_text(metadata(declared(item["metadata"])), encoding="utf-8")
            written = SBOM / f"{target}.cdx.json"
            command = ["-m", "cyclonedx_py", "environment", "--output-reproducible", "--mc-type", "application"]
            project = ["--pyproject", str(ROOT / "pyproject.toml"), "--output-file", str(written)]
            subprocess.run([sys.executable, *command, *project, str(environment / "bin/python")], check=True)
            name_it(written, target)
            print(written.relative_to(ROOT))
    found = {target: components(target) for target in TARGETS}
    PAGE.write_text(page(found), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
    wrong = [fault for each in found.values() for fault in faults(each)]
    if wrong:
        sys.exit("\n".join(sorted(set(wrong))))


def name_it(bill: Path, target: str) -> None:
    """Say which version of this project and which of its images the bill is of: pyproject has neither."""
    document = json.loads(bill.read_text(encoding="utf-8"))
    document["metadata"]["component"] |= {"name": f"frs-pipeline-{target}", "version": __version__}
    bill.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def resolved(target: str, folder: Path) -> list[dict[str, Any]]:
    """pip's report of what the lock file names. The wheels' hashes are left out: with them pip would download all."""
    python, processor, glibc = TARGETS[target]
    entries = re.findall(
        r"^[\w.-]+==[^\n]+(?:\n    --hash[^\n]+)+", (ROOT / f"locks/{target}.txt").read_text(), re.MULTILINE
    )
    sources = [entry for entry in entries if entry.split("==")[0] in SOURCES]
    pins = [entry.split()[0] for entry in entries if entry not in sources]
    platforms = [f"manylinux_2_{minor}_{processor}" for minor in range(17, glibc + 1)] + [f"manylinux2014_{processor}"]
    there = ["--only-binary=:all:", "--python-version", python, "--target", str(folder / "nowhere")]
    there += [part for platform in platforms for part in ("--platform", platform)]
    hashed = ["--require-hashes", "--no-build-isolation"]
    return [*report(pins, there, folder), *report(sources, hashed, folder)]


def report(requirements: list[str], options: list[str], folder: Path) -> list[dict[str, Any]]:
    if not requirements:
        return []
    listed, written = folder / "requirements.txt", folder / "report.json"
    listed.write_text("\n".join(requirements) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed"]
    subprocess.run([*command, *options, "--report", str(written), "--requirement", str(listed)], check=True)
    items: list[dict[str, Any]] = json.loads(written.read_text(encoding="utf-8"))["install"]
    return items


def declared(fields: dict[str, Any]) -> dict[str, Any]:
    """With an expression of SPDX for the licence where the package itself has none and it is known."""
    name = canonicalize_name(fields["name"])
    theirs = next((terms for start, terms in NVIDIA.items() if name.startswith(start)), None)
    if theirs and (PROPRIETARY in fields.get("classifier", []) or "Proprietary" in str(fields.get("license"))):
        return {**fields, "license_expression": theirs}
    return {**fields, "license_expression": KNOWN[name]} if name in KNOWN else fields


def metadata(fields: Mapping[str, str | list[str]]) -> str:
    """METADATA again, out of the JSON that pip makes of it (PEP 566)."""
    lines = []
    for key, value in fields.items():
        name = key.replace("_", "-").title()
        if key == "keywords" or isinstance(value, str):
            value = [value if isinstance(value, str) else ",".join(value)]
        # A header of several lines is folded, as METADATA does it.
        lines += [f"{name}: {each.replace(chr(10), chr(10) + 8 * ' ')}" for each in value if key != "description"]
    return "\n".join(lines) + "\n"


def components(target: str) -> dict[str, tuple[str, list[str]]]:
    """Name -> version and licences, out of the target's bill of materials."""
    document = json.loads((SBOM / f"{target}.cdx.json").read_text(encoding="utf-8"))
    return {each["name"]: (each["version"], licences(each)) for each in document["components"]}


def licences(component: Mapping[str, Any]) -> list[str]:
    """All that the package declares: identifiers and expressions of SPDX, and the names of classifiers."""
    found = set()
    for each in component.get("licenses", []):
        named = each.get("license", {})
        found.add(each.get("expression") or named.get("id") or named["name"].split(" :: ")[-1])
    return sorted(found)


def faults(found: Mapping[str, tuple[str, list[str]]]) -> list[str]:
    """A line for each component that names no licence, or one that is neither in ALLOWED nor in TERMS."""
    wrong = []
    for name, (version, given) in found.items():
        if not given:
            wrong.append(f"{name} {version}: its licence is not known; look it up, and name it in containers/sbom.py")
        for licence in given:
            parts = {licence} if licence in TERMS else {part.strip() for part in _OPERATORS.split(licence)} - {""}
            if parts - ALLOWED - TERMS.keys():
                wrong.append(f"{name} {version}: {licence} is not among the licences allowed in containers/sbom.py")
    return wrong


def page(found: Mapping[str, Mapping[str, tuple[str, list[str]]]]) -> str:
    rows: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for target, its in found.items():
        for name, (version, given) in its.items():
            rows[name, "; ".join(given) or "not known"][version].append(target)
    lines = []
    for (name, licence), versions in sorted(rows.items()):
        where = "; ".join(f"{version} ({', '.join(targets)})" for version, targets in versions.items())
        lines.append(f"| {name} | {where} | {licence} |")
    terms = [f"- {name}: {words}." for name, words in TERMS.items()]
    return "\n".join([HEAD, *terms, "", "| package | version (image) | licence |", "|---|---|---|", *lines, ""])


if __name__ == "__main__":
    main()
