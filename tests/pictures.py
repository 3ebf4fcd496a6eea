"""Pictures take half the time of a short training: its tests write a stub, unless they ask for `drawn_pictures`."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastbert.utils.pictures import pyplot

PNG = b"\x89PNG"


def stub_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Replaces the `save_png` of a module by one that draws nothing."""

    def save_stub(figure: Any, file: Path) -> None:
        file.write_bytes(PNG)
        pyplot().close(figure)

    if "drawn_pictures" not in request.fixturenames:
        monkeypatch.setattr(module, "save_png", save_stub)
