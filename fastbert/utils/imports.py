"""`after_import`: an action that follows the import of a module, whoever imports it and whenever. Imports nothing itself."""

import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]


def after_import(name: str, action: Action) -> None:
    """Calls action(module) as soon as the module `name` is imported: now if it is, else when somebody imports it.

    The action runs before that import statement returns, and again for a module that is loaded once more. A second call with
    the same arguments changes nothing but runs the action if the module is there.
    """
    finder = _Finder(name, action)
    if finder not in sys.meta_path:  # never taken out again: another thread may be going through this list
        sys.meta_path.insert(0, finder)
    if name in sys.modules:
        action(importlib.import_module(name))  # which waits where another thread is at it


class _Finder:
    """Finds one module as the other finders do, and lets the action follow its execution."""

    def __init__(self, name: str, action: Action) -> None:
        self.name, self.action = name, action

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Finder) and (self.name, self.action) == (other.name, other.action)

    def __hash__(self) -> int:
        return hash((self.name, self.action))

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, _Finder) and finder.name == self.name:
                continue
            find = getattr(finder, "find_spec", None)
            spec = None if find is None else find(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self._actions())
                return spec
        return None

    def _actions(self) -> list[Action]:
        """Of all that wait for this module, in the order in which they came."""
        same = [one for one in sys.meta_path if isinstance(one, _Finder) and one.name == self.name]
        return [one.action for one in reversed(same)]


class _Loader:
    """Loads a module as its own loader does, which it leaves in the module, and runs the actions afterwards."""

    def __init__(self, loader: Any, actions: list[Action]) -> None:
        self.loader, self.actions = loader, actions

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        for action in self.actions:
            action(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)
