# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

"""What is published: the wheel and the sdist, their metadata and README, and how to cite them."""

import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import hf_exptest

ROOT = Path(__file__).parents[1]
VERSION = hf_exptest.__version__
MODULES = {str(path.relative_to(ROOT)) for path in (ROOT / "hf_exptest").rglob("*.py")}


def run(*command, cwd):
    """Run a command that has to succeed; returns what it prints."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def dist(tmp_path_factory):
    """A folder with the sdist, and the wheel that was built from it without a network."""
    for package in ("build", "hatch_fancy_pypi_readme", "hatchling", "twine"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[package]'")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="session")
def wheel(dist):
    return dist / f"hf_exptest-{VERSION}-py3-none-any.whl"


@pytest.fixture(scope="session")
def metadata(wheel):
    from packaging.metadata import Metadata

    with zipfile.ZipFile(wheel) as archive:
        return Metadata.from_email(archive.read(f"hf_exptest-{VERSION}.dist-info/METADATA"), validate=True)


def test_the_wheel_holds_the_package_and_its_licence_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    described = {name for name in names if name.startswith(f"hf_exptest-{VERSION}.dist-info/")}
    assert names - described == MODULES | {"hf_exptest/py.typed"}
    assert f"hf_exptest-{VERSION}.dist-info/licenses/LICENSE" in described


def test_the_sdist_holds_what_the_wheel_is_built_from(dist):
    with tarfile.open(dist / f"hf_exptest-{VERSION}.tar.gz") as archive:
        names = {name.removeprefix(f"hf_exptest-{VERSION}/") for name in archive.getnames()}
    files = {".gitignore", "CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    assert names == MODULES | {"hf_exptest/py.typed"} | files


def test_the_metadata(metadata):
    assert (metadata.name, str(metadata.version)) == ("hf-exptest", VERSION)
    assert (metadata.license_expression, metadata.license_files) == ("Apache-2.0", ["LICENSE"])
    assert metadata.project_urls == {"Paper": "https://arxiv.org/abs/2411.16975"}
    assert {"plot", "examples"} <= set(metadata.provides_extra)
    assert not [requirement for requirement in metadata.requires_dist if requirement.url]
    # A classifier that PyPI does not know fails the build.
    assert {"Typing :: Typed", "Operating System :: POSIX :: Linux"} <= set(metadata.classifiers)


def test_python_versions_are_the_same_everywhere(metadata):
    name = "Programming Language :: Python :: 3."
    minors = [int(c.removeprefix(name)) for c in metadata.classifiers if c.startswith(name)]
    assert minors == list(range(10, 14))
    assert str(metadata.requires_python) == f">=3.{minors[0]}"
    constraints = " ".join((ROOT / "constraints.txt").read_text().split())
    assert f"for Python 3.{minors[0]} to 3.{minors[-1]}." in constraints


def test_the_readme_on_pypi(dist, metadata):
    markdown = pytest.importorskip("readme_renderer.markdown")
    pytest.importorskip("comrak", reason="readme-renderer[md] is not installed: pip install -e '.[package]'")
    run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir(), cwd=dist)

    html = markdown.render(metadata.description)
    source = (ROOT / "README.md").read_text()
    # Nothing that PyPI has not got, though README.md has both links and images; and no words are lost.
    links = re.findall(r'(?:href|src)="([^"]*)"', html)
    assert "https://arxiv.org/abs/2411.16975" in links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert len(re.findall(r"\]\((?!https:)", source)) > 5
    assert "](" not in re.sub(r"\]\((https:|#)", "", metadata.description)
    assert html.count("<table>") == len(re.findall(r"^\| *:?-+|^\|-+", source, re.MULTILINE))
    words = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", source)
    assert re.findall(r"^#+ .*", metadata.description, re.MULTILINE) == re.findall(r"^#+ .*", words, re.MULTILINE)


def test_the_wheel_installs_and_starts(wheel, tmp_path):
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # The dependencies are those of the tests. Python reads no .pth file there, and so not that of an editable
    # hf_exptest: what is imported is the wheel.
    site = venv / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))

    # Three starts in one process, since each import takes seconds: the launcher runs the command.
    checks = tmp_path / "checks.py"
    checks.write_text(
        "import runpy, sys, hf_exptest\n"
        "print(hf_exptest.__file__, hf_exptest.__version__)\n"
        f"sys.argv = [{str(venv / 'bin' / 'hf-exptest')!r}, '--help']\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    output = run(python, "-m", "hf_exptest.run", checks, cwd=tmp_path)
    assert output.startswith(f"{site / 'hf_exptest' / '__init__.py'} {VERSION}\nusage: hf-exptest ")


def test_the_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"authors", "cff-version", "message", "title"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert (citation["version"], citation["license"]) == (VERSION, "Apache-2.0")
    (paper,) = citation["references"]
    assert {"authors", "title", "type"} <= paper.keys()
    assert [author["family-names"] for author in paper["authors"]] == ["Chaudhry", "Mizuno"]
    assert paper["title"].startswith("ExpTest: Automating Learning Rate Searching and Tuning")
    assert paper["url"] == "https://arxiv.org/abs/2411.16975"
