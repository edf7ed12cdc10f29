#!/usr/bin/env python
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Compare the built API reference with the public names of the packages.

    python docs/check_api.py docs/_build/en/objects.inv

Each name in the ``__all__`` of a package, and each public method, property and
field that a class of them defines, must be there, and nothing else.
"""
import dataclasses
import importlib
import inspect
import pkgutil
import posixpath
import sys

from sphinx.util.inventory import InventoryFile

import mmvanilla


def documented(path: str) -> set[str]:
    """Names of Python objects in an inventory that Sphinx wrote."""
    with open(path, 'rb') as f:
        inventory = InventoryFile.load(f, '', posixpath.join)
    return {
        name
        for role, names in inventory.items()
        if role.startswith('py:') and role != 'py:module' for name in names
    }


def public() -> tuple[set[str], set[str]]:
    """Names that must be documented, and other names of the same objects."""
    packages = [mmvanilla] + [
        importlib.import_module(f'mmvanilla.{found.name}')
        for found in pkgutil.iter_modules(mmvanilla.__path__) if found.ispkg
    ]
    names, aliases = set(), set()
    for package in packages:
        for name in getattr(package, '__all__', ()):
            value = getattr(package, name)
            found = [''] + [f'.{member}' for member in members(value)]
            names |= {f'{package.__name__}.{name}{m}' for m in found}
            if hasattr(value, '__qualname__'):
                aliases |= {
                    f'{value.__module__}.{value.__qualname__}{m}'
                    for m in found
                }
    return names, aliases


def members(value: object) -> list[str]:
    """The public methods, properties and fields that a class defines."""
    if not inspect.isclass(value):
        return []
    fields = [
        field.name for field in dataclasses.fields(value)
    ] if dataclasses.is_dataclass(value) else []
    return fields + [
        name for name, member in vars(value).items()
        if not name.startswith('_') and (
            inspect.isfunction(member) or isinstance(member, property))
    ]


def main() -> int:
    found, (names, aliases) = documented(sys.argv[1]), public()
    missing, foreign = names - found, found - names - aliases
    for name in sorted(missing):
        print(f'{name} is public and not in the API reference')
    for name in sorted(foreign):
        print(f'{name} is in the API reference and not public')
    print(f'{len(names & found)} of {len(names)} public names are documented')
    return bool(missing or foreign or not names)


if __name__ == '__main__':
    sys.exit(main())
