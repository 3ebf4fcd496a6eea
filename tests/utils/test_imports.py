"""An action after an import, whoever imports and whenever."""

import importlib
import importlib.util
import inspect
import sys
import threading
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

import pytest

from fastbert.utils.imports import after_import


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module that can be imported and is not yet."""
    (tmp_path / "of_this_test.py").write_text("ready = False\nimport time\ntime.sleep(0.05)\nready = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", [BuiltinImporter, FrozenImporter, PathFinder])
    yield "of_this_test"
    sys.modules.pop("of_this_test", None)


def test_the_action_follows_the_import_and_leaves_the_module_as_it_is(module):
    seen = []

    def action(imported):
        seen.append((imported.__name__, imported.ready))

    def second(imported):
        seen.append("second")

    after_import(module, action)
    after_import(module, action)
    after_import(module, second)
    assert module not in sys.modules
    assert not seen
    imported = importlib.import_module(module)
    assert seen == [(module, True), "second"]
    assert type(imported.__loader__).__name__ == type(imported.__spec__.loader).__name__ == "SourceFileLoader"
    assert inspect.getsource(imported).startswith("ready = False")
    after_import(module, action)
    assert seen[2:] == [(module, True)]


def test_an_import_in_another_thread_is_waited_for(module):
    seen = []
    threads = [threading.Thread(target=importlib.import_module, args=(module,)) for _ in range(4)]
    threads += [threading.Thread(target=after_import, args=(module, lambda one: seen.append(one.ready))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) >= 4
    assert all(seen)


def test_beside_another_librarys_hook(module):
    """Which finds the module by all finders, and guards against its own return."""

    class Other:
        busy = False

        def find_spec(self, name, path=None, target=None):
            if name != module or self.busy:
                return None
            self.busy = True
            try:
                return importlib.util.find_spec(name)
            finally:
                self.busy = False

    seen = []
    sys.meta_path.insert(0, Other())
    after_import(module, seen.append)
    sys.meta_path.insert(0, Other())
    imported = importlib.import_module(module)
    assert set(seen) == {imported}


def test_a_module_that_is_not_there_stays_so():
    after_import("nowhere_to_be_found", pytest.fail)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("nowhere_to_be_found")
