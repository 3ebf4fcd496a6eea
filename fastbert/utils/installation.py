"""What to type for an extra of this package, by how the package was installed.

A command that names the package alone works only where it came from an index. pip, uv and others note any other origin in
`direct_url.json` beside the package's metadata (https://packaging.python.org/en/latest/specifications/direct-url/).
"""

import importlib.util
import json
import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

NAME = "fastbert-triton"
HERE = Path(__file__).resolve().parents[2]  # a checkout, or site-packages


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation, as the user types it in the current folder.

    extra: as in pyproject.toml, for example "train".
    """
    try:
        distribution = metadata.distribution(NAME)
    except metadata.PackageNotFoundError:  # run from a checkout on PYTHONPATH
        return _installer(["-e", _in_folder(HERE, extra)] if (HERE / "pyproject.toml").is_file() else [f"{NAME}[{extra}]"])
    origin = distribution.read_text("direct_url.json")
    if origin is None:
        return _installer([f"{NAME}[{extra}]"])
    return _installer(_from_origin(json.loads(origin), extra) or _requirements(distribution, extra))


def _from_origin(origin: dict[str, Any], extra: str) -> list[str] | None:
    """The arguments of `pip install`, or None where the origin, a local file or folder, is no longer there."""
    url, inside = origin["url"], origin.get("subdirectory")
    fragment = f"#subdirectory={inside}" if inside else ""
    if "vcs_info" in origin:
        version = origin["vcs_info"]
        return [f"{NAME}[{extra}] @ {version['vcs']}+{url}@{version['commit_id']}{fragment}"]
    parts = urlsplit(url)
    if parts.scheme != "file":
        return [f"{NAME}[{extra}] @ {url}{fragment}"]
    path = Path(url2pathname(parts.path))
    if not path.exists():
        return None
    if "dir_info" in origin:
        folder = _in_folder(path / (inside or ""), extra)
        return ["-e", folder] if origin["dir_info"].get("editable") else [folder]
    return [f"{path}[{extra}]"]


def _in_folder(folder: Path, extra: str) -> str:
    return f"{'.' if folder == Path.cwd() else folder}[{extra}]"


def _requirements(distribution: metadata.Distribution, extra: str) -> list[str]:
    """What the extra asks for, written out."""
    from packaging.requirements import Requirement

    def asked(requirement: Requirement, chosen: str) -> bool:
        return requirement.marker is None or requirement.marker.evaluate({"extra": chosen})

    found = [one for one in map(Requirement, distribution.requires or ()) if asked(one, extra) and not asked(one, "")]
    for requirement in found:
        requirement.marker = None  # no shell's business
    return [str(requirement) for requirement in found]


def _installer(arguments: list[str]) -> str:
    """`pip install` of this Python: by its name alone only where that is the first one on the path."""
    python = Path(sys.executable)
    typed = str(python.relative_to(Path.cwd())) if python.is_relative_to(Path.cwd()) else str(python)
    if importlib.util.find_spec("pip") is None:  # environments that uv makes
        command = ["uv", "pip", "install", "--python", typed]
    elif (first := shutil.which("pip")) is not None and Path(first).parent == python.parent:
        command = ["pip", "install"]
    else:
        command = [typed, "-m", "pip", "install"]
    return " ".join([shlex.join(command), *(_quoted(argument) for argument in arguments)])


def _quoted(argument: str) -> str:
    """In quotes, which brackets need in some shells, unless it is an option."""
    return argument if argument.startswith("-") else shlex.quote(argument)
