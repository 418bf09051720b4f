"""Entry points are frozen at installation: a line added to a manifest is invisible until then."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from restorekit.registry import REGISTRIES

PLUGINS = Path(__file__).parents[1] / "plugins"
MANIFESTS = sorted(PLUGINS.glob("*/pyproject.toml"))

if not MANIFESTS:
    pytest.skip(f"{PLUGINS} holds no plug-ins: tests run outside a checkout", allow_module_level=True)


@pytest.fixture(params=MANIFESTS, ids=lambda path: path.parent.name)
def manifest(request):
    return request.param


def declared(manifest: Path) -> dict:
    return tomllib.loads(manifest.read_text("utf-8"))["project"]


def test_the_installed_entry_points_are_those_of_the_manifest(manifest):
    project = declared(manifest)
    try:
        installed = metadata.distribution(project["name"])
    except metadata.PackageNotFoundError:
        pytest.skip(f"{project['name']} is not installed")
    written = {
        (group, name, value)
        for group, points in project.get("entry-points", {}).items()
        for name, value in points.items()
    }
    found = {(point.group, point.name, point.value) for point in installed.entry_points}
    found = {point for point in found if point[0].startswith("restorekit.")}
    assert found == written, (
        f"{project['name']} is installed with other entry points than {manifest} has; "
        f"reinstall it: pip install --no-deps -e {manifest.parent}"
    )


def test_a_folder_a_distribution_and_a_package_share_one_word(manifest):
    word = manifest.parent.name
    project = declared(manifest)
    assert project["name"] == f"restorekit-{word}"
    package = f"restorekit_{word.replace('-', '_')}"
    assert (manifest.parent / package / "__init__.py").is_file()
    for points in project["entry-points"].values():
        assert all(value.partition(":")[0].partition(".")[0] == package for value in points.values())


def test_a_manifest_states_licence_and_summary_and_uses_known_groups(manifest):
    project = declared(manifest)
    assert project["license"]
    assert project["description"]
    assert set(project["entry-points"]) <= {registry.group for registry in REGISTRIES}


def test_every_plugin_is_installed_by_the_two_commands():
    installed = (PLUGINS.parent / "requirements.txt").read_text()
    for manifest in MANIFESTS:
        assert f"-e plugins/{manifest.parent.name}\n" in installed
