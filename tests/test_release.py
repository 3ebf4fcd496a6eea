"""`.ci/release.py`: the same bytes whenever and wherever, and nothing is released whose version, changelog and tag disagree."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EPOCH = 1_800_000_000
# What `python -m build` does, where only setuptools is installed: the sdist, then the wheel of it.
BY_SETUPTOOLS = """
import os, pathlib, shutil, sys
from setuptools import build_meta
_, out, source = sys.argv[1:]
out = str(pathlib.Path(out).absolute())
os.makedirs(out)
os.chdir(source)
name = build_meta.build_sdist(out)
shutil.unpack_archive(os.path.join(out, name), os.path.join(source, "unpacked"), filter="data")
os.chdir(os.path.join(source, "unpacked", name.removesuffix(".tar.gz")))
build_meta.build_wheel(out)
"""


@pytest.fixture(scope="module")
def release():
    pytest.importorskip("packaging", reason="packaging is not installed")
    specification = importlib.util.spec_from_file_location("release_script", ROOT / ".ci" / "release.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def two_builds(release, tmp_path_factory) -> list[Path]:
    """Two folders with the sdist and the wheel of the same files: other folders, times, rights and orders on the disk."""
    if importlib.util.find_spec("setuptools") is None:  # not imported: it takes the place of a distutils already there
        pytest.skip("setuptools is not installed: nothing can be built")
    command = (sys.executable, "-c", BY_SETUPTOOLS) if importlib.util.find_spec("build") is None else release.BUILD
    folders = []
    for name, age, mode in (("one", 0, 0o644), ("another place", 86_400 * 400, 0o664)):
        source = tmp_path_factory.mktemp(name) / "source"
        for part in ("kernels", "fastbert") if age else ("fastbert", "kernels"):
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
        (source / "fastbert" / "small" / "model.safetensors").write_bytes(b"weights")  # the real ones take seconds to compress
        for place in ("specs/proofs.json", "matmul/tuned/some-gpu.json"):  # recorded later than this, or on a GPU
            (source / "kernels" / place).parent.mkdir(exist_ok=True)
            (source / "kernels" / place).write_text("{}")
        for file in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
            shutil.copy(ROOT / file, source)
        for file in source.rglob("*"):
            if file.is_file():
                file.chmod(mode)
                os.utime(file, (time.time() - age,) * 2)
        release.build(source, source.parent / "dist", EPOCH, command)
        folders.append(source.parent / "dist")
    return folders


def test_the_same_bytes_twice(two_builds):
    first, second = (
        {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()} for folder in two_builds
    )
    assert sorted(name.rpartition(".")[2] for name in first) == ["gz", "whl"]
    assert first == second


def test_what_the_archives_hold(two_builds, release):
    (wheel,), (sdist,) = two_builds[0].glob("*.whl"), two_builds[0].glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        entries = archive.infolist()
        assert entries[-1].filename.endswith(".dist-info/RECORD")
        assert {entry.date_time for entry in entries} == {time.gmtime(EPOCH)[:6]}
        assert {entry.external_attr >> 16 for entry in entries} == {0o100644}
        names = {entry.filename for entry in entries}
    sources = {str(file.relative_to(ROOT)) for top in ("fastbert", "kernels") for file in (ROOT / top).rglob("*.py")}
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    inside = {member.name.partition("/")[2] for member in members}
    assert {name for name in inside if name.endswith(".py")} == sources
    data = {
        "fastbert/py.typed",
        "fastbert/small/tokenizer.json",
        "kernels/specs/proofs.json",
        "kernels/matmul/tuned/some-gpu.json",
    }
    assert data | {"LICENSE", "PKG-INFO"} <= inside
    assert {name.replace("kernels/", "fastbert/_kernels/") for name in data} <= names
    assert {(member.mtime, member.uid, member.uname, member.mode) for member in members} == {(EPOCH, 0, "", 0o644)}
    declared = release.declared_requirements(wheel)
    assert any(line.startswith("torch") for line in declared)
    assert any(line.startswith("accelerate") and 'extra == "train"' in line for line in declared)
    assert not any(line.startswith(("pytest", "ruff", "twine")) for line in declared)


def test_the_sums_are_checked_by_sha256sum(release, tmp_path):
    (tmp_path / "a.whl").write_bytes(b"a")
    (tmp_path / "b.tar.gz").write_bytes(b"b")
    release.write_sums(tmp_path)
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines()
    assert lines == [
        f"{hashlib.sha256(content).hexdigest()}  {name}" for content, name in ((b"a", "a.whl"), (b"b", "b.tar.gz"))
    ]


# What keeps a version from being released


@pytest.fixture
def repository(tmp_path, release, monkeypatch) -> Path:
    """A small package that is ready to be released as 0.1.0."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    for key, value in (("GIT_CONFIG_GLOBAL", os.devnull), ("GIT_CONFIG_SYSTEM", os.devnull), ("GIT_DIR", None)):
        monkeypatch.delenv(key, raising=False) if value is None else monkeypatch.setenv(key, value)
    folder = tmp_path / "repository"
    (folder / "fastbert").mkdir(parents=True)
    (folder / "fastbert" / "version.py").write_text('__version__ = "0.1.0"\n')
    (folder / "CHANGELOG.md").write_text("# Changelog\n\n## 0.1.0 (2026-12-01)\n\n- It works.\n\n## 0.0.1 (2026-01-01)\n")
    (folder / "pyproject.toml").write_text('[project]\nname = "fastbert-triton"\ndynamic = ["version"]\n')
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    release.git(folder, "config", "user.name", "A")
    release.git(folder, "config", "user.email", "a@example.org")
    commit(release, folder)
    release.git(folder, "tag", "v0.1.0")
    return folder


def commit(release, folder: Path) -> None:
    release.git(folder, "add", "-A")
    release.git(folder, "commit", "-q", "-m", "Change")


def test_a_version_that_is_ready(release, repository):
    assert release.declared_version(repository) == "0.1.0"
    assert release.uncommitted(repository) == []
    assert release.disagreements(repository, "0.1.0") == []


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("0.2.0", ["`## 0.2.0 (YYYY-MM-DD)` as the first heading of CHANGELOG.md, got 0.1.0 (2026-12-01)", "the tag v0.2.0"]),
        ("0.0.1", ["`## 0.0.1 (YYYY-MM-DD)` as the first heading of CHANGELOG.md, got 0.1.0 (2026-12-01)", "the tag v0.0.1"]),
        ("0.1.0.dev0", ["a version to release", "`## 0.1.0.dev0", "the tag v0.1.0.dev0 on the last commit, got v0.1.0"]),
        ("0.1", ["`## 0.1 (", "the tag v0.1 "]),
        ("new", ["as PEP 440 has it", "`## new (", "the tag vnew "]),
    ],
)
def test_a_version_that_disagrees(release, repository, version, said):
    found = release.disagreements(repository, version)
    assert len(found) == len(said)
    for line, words in zip(found, said):
        assert words in line


def test_a_tag_on_an_older_commit_and_an_undated_heading(release, repository):
    (repository / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 0.1.0 (2026-12-01)\n")
    assert "1 that are not: CHANGELOG.md" in release.uncommitted(repository)[0]
    commit(release, repository)
    heading, tag = release.disagreements(repository, "0.1.0")
    assert heading.endswith("as the first heading of CHANGELOG.md, got Unreleased")
    assert tag == "expected the tag v0.1.0 on the last commit, got no tag"


def test_nothing_is_built_of_it(release, repository, monkeypatch):
    """Not even where an older release lies in dist/, which stays."""
    (repository / ".git" / "info" / "exclude").write_text("dist/\n")
    (repository / "dist").mkdir()
    (repository / "dist" / "old.whl").touch()
    (repository / "fastbert" / "version.py").write_text('__version__ = "0.2.0"\n')
    commit(release, repository)
    monkeypatch.setattr(release, "ROOT", repository)
    monkeypatch.setattr(release.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(release, "build", lambda *arguments: pytest.fail("built"))
    with pytest.raises(SystemExit, match=r"(?s)not released:.*v0\.2\.0 on the last commit, got no tag"):
        release.main([])
    assert (repository / "dist" / "old.whl").exists()


def test_the_steps_of_a_release(release, repository, monkeypatch):
    """From the last commit alone, and dist/ holds nothing else afterwards; the tools themselves are played."""
    (repository / ".git" / "info" / "exclude").write_text("dist/\nbeside.txt\n")
    (repository / "dist").mkdir()
    (repository / "dist" / "old.whl").touch()
    (repository / "beside.txt").touch()
    commands = []

    def build(source: Path, folder: Path, epoch: int) -> None:
        assert sorted(one.name for one in source.iterdir()) == ["CHANGELOG.md", "fastbert", "pyproject.toml"]
        assert epoch == int(release.git(repository, "log", "-1", "--format=%ct"))
        folder.mkdir()
        with zipfile.ZipFile(folder / "fastbert_triton-0.1.0-py3-none-any.whl", "w") as archive:
            archive.writestr("fastbert_triton-0.1.0.dist-info/METADATA", "Name: fastbert-triton\nRequires-Dist: torch>=2.11\n")

    def run(*command: str, environment=None) -> None:
        if command[0] == "git":
            subprocess.run(command, check=True)
            return
        commands.append(command[2:4])
        if "cyclonedx_py" in command:
            assert 'version = "0.1.0"' in Path(command[command.index("--pyproject") + 1]).read_text()
            assert Path(command[-1]).read_text() == "torch>=2.11\n"
            Path(command[command.index("-o") + 1]).write_text("{}")

    monkeypatch.setattr(release, "ROOT", repository)
    monkeypatch.setattr(release.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(release, "build", build)
    monkeypatch.setattr(release, "run", run)
    assert release.main([]) == 0
    assert commands == [("twine", "check"), ("cyclonedx_py", "requirements")]
    names = ["SHA256SUMS", "fastbert_triton-0.1.0-py3-none-any.whl", "fastbert_triton-0.1.0.cdx.json"]
    assert sorted(file.name for file in (repository / "dist").iterdir()) == names


def test_the_tools_are_asked_for_first(release, monkeypatch):
    monkeypatch.setattr(release.importlib.util, "find_spec", lambda name: None if name == "twine" else name)
    with pytest.raises(
        SystemExit, match="expected the tools of the extra `release`, which `make release` installs, got no twine"
    ):
        release.main(["--rehearse"])
