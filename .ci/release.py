"""`make release`: the files of a release in dist/, from the last commit and never from what lies beside it.

    python .ci/release.py [--rehearse]

Checks that the version, the changelog and the tag agree, builds the sdist and from it the wheel, and adds an SBOM of what the
wheel declares to need, and SHA256SUMS. The same commit gives the same bytes, whenever and wherever: times come from the commit,
and both archives are written again with their entries in order and without owners. Nothing is published.
"""

import argparse
import email
import gzip
import hashlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]
EXTRAS_OF_USERS = ("train", "export", "demo")  # the others are for work on fastbert itself
BUILD = (sys.executable, "-m", "build", "--no-isolation")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="build any version, tagged or not; still from the last commit")
    options = parser.parse_args(arguments)
    version = declared_version(ROOT)
    missing = [tool for tool in ("build", "twine", "cyclonedx_py", "setuptools") if importlib.util.find_spec(tool) is None]
    if missing:
        raise SystemExit(
            f"expected the tools of the extra `release`, which `make release` installs, got no {', '.join(missing)}"
        )
    found = uncommitted(ROOT) + ([] if options.rehearse else disagreements(ROOT, version))
    if found:
        raise SystemExit("\n".join(["not released:", *found]))
    epoch = int(git(ROOT, "log", "-1", "--format=%ct"))
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "source"), Path(folder, "dist")
        export_commit(ROOT, source)
        build(source, made, epoch)
        run(sys.executable, "-m", "twine", "check", "--strict", *sorted(map(str, made.iterdir())))
        write_sbom(source, next(made.glob("*.whl")), version, epoch)
        write_sums(made)
        shutil.rmtree(ROOT / "dist", ignore_errors=True)  # files of another version would be uploaded with these
        shutil.copytree(made, ROOT / "dist")
    print((ROOT / "dist" / "SHA256SUMS").read_text(encoding="utf-8"), end="")
    return 0


# What must agree


def declared_version(root: Path) -> str:
    text = (root / "fastbert" / "version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit(f'expected a line __version__ = "..." in {root / "fastbert" / "version.py"}, got none')
    return found[1]


def uncommitted(root: Path) -> list[str]:
    changed = git(root, "status", "--porcelain").splitlines()
    return [f"expected every change committed, got {len(changed)} that are not: {changed[0][3:]}, ..."] if changed else []


def disagreements(root: Path, version: str) -> list[str]:
    """What keeps this version from being released, as one line each."""
    found = []
    try:
        if Version(version).is_devrelease or str(Version(version)) != version:
            found.append(f"expected a version to release in fastbert/version.py, such as 0.1.0 or 0.2.0rc1, got {version}")
    except InvalidVersion:
        found.append(f"expected a version as PEP 440 has it in fastbert/version.py, got {version}")
    headings = re.findall(r"^## +(.+?) *$", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    newest = headings[0] if headings else "no heading"
    if re.fullmatch(rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", newest) is None:
        found.append(f"expected `## {version} (YYYY-MM-DD)` as the first heading of CHANGELOG.md, got {newest}")
    tags = git(root, "tag", "--points-at", "HEAD").split()
    if f"v{version}" not in tags:
        found.append(f"expected the tag v{version} on the last commit, got {', '.join(tags) or 'no tag'}")
    return found


# The files


def export_commit(root: Path, folder: Path) -> None:
    """The files of the last commit alone: setuptools takes in what else lies in its way."""
    archive = folder.with_suffix(".zip")
    run("git", "-C", str(root), "archive", "--format=zip", "-o", str(archive), "HEAD")
    shutil.unpack_archive(archive, folder)


def build(source: Path, folder: Path, epoch: int, command: tuple[str, ...] = BUILD) -> None:
    """The sdist of a folder, and the wheel of that sdist, the same bytes for the same files. epoch: of all that is inside."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0"}
    run(*command, "--outdir", str(folder), str(source), environment=environment)
    for file in folder.iterdir():
        (settle_wheel if file.suffix == ".whl" else settle_sdist)(file, epoch)


def settle_wheel(file: Path, epoch: int) -> None:
    """Writes a wheel again: entries by name, with those that describe it last, one time, one mode."""
    with zipfile.ZipFile(file) as archive:
        contents = {entry.filename: archive.read(entry) for entry in archive.infolist() if not entry.is_dir()}
    with zipfile.ZipFile(file, "w") as archive:
        for name in sorted(contents, key=lambda name: (".dist-info/" in name, name.endswith("/RECORD"), name)):
            entry = zipfile.ZipInfo(name, time.gmtime(epoch)[:6])
            entry.create_system, entry.external_attr, entry.compress_type = 3, 0o100644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, contents[name], compresslevel=9)


def settle_sdist(file: Path, epoch: int) -> None:
    """Writes an sdist again: entries by name, one time, one mode, no owner."""
    with tarfile.open(file) as archive:
        contents = {entry.name: archive.extractfile(entry).read() for entry in archive.getmembers() if entry.isfile()}
    with gzip.GzipFile("", "wb", 9, file.open("wb"), epoch) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        for name in sorted(contents):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(contents[name]), epoch, 0o644
            archive.addfile(entry, io.BytesIO(contents[name]))


def write_sbom(source: Path, wheel: Path, version: str, epoch: int) -> None:
    """A CycloneDX file beside the wheel: what its metadata declares to need, in ranges, since it pins nothing."""
    project = source / "sbom.toml"  # cyclonedx-py takes the package's own version from nowhere else
    text = (source / "pyproject.toml").read_text(encoding="utf-8")
    project.write_text(text.replace('dynamic = ["version"]', f'version = "{version}"'), encoding="utf-8")
    requirements = source / "declared.txt"
    requirements.write_text("\n".join(declared_requirements(wheel)) + "\n", encoding="utf-8")
    file = wheel.with_name(f"{wheel.name.split('-')[0]}-{version}.cdx.json")
    command = ["requirements", "--pyproject", str(project), "--mc-type", "library", "--output-reproducible", "-o", str(file)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
    run(sys.executable, "-m", "cyclonedx_py", *command, str(requirements), environment=environment)


def declared_requirements(wheel: Path) -> list[str]:
    """The Requires-Dist lines of a wheel, without those of extras for work on fastbert itself."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])

    def is_for_users(requirement: Requirement) -> bool:
        asked = re.search(r'extra == "([^"]+)"', str(requirement.marker or ""))
        return asked is None or asked[1] in EXTRAS_OF_USERS

    return [line for line in lines if is_for_users(Requirement(line))]


def write_sums(folder: Path) -> None:
    """SHA256SUMS of the files of a folder, as `sha256sum --check` reads it."""
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True).stdout.rstrip()


def run(*command: str, environment: dict[str, str] | None = None) -> None:
    print("$", *command, flush=True)
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    raise SystemExit(main())
