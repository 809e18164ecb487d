"""Evaluating a config file whose variables have other values than those it assigns.

mmengine evaluates a base before the file that inherits from it, so what a base computes from one of its
variables does not follow a child that sets the variable. Here such files are evaluated from copies in which
the new value stands in place of every value assigned to that name; mmengine reads the copies.
"""

import ast
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

_PREDEFINED = re.compile(r'\{\{\s*(fileDirname|fileBasename|fileBasenameNoExtension|fileExtname)\s*\}\}')


@dataclass(frozen=True)
class ConfigFile:
    """A config in Python and its bases, without those of other packages and formats."""

    path: Path
    tree: ast.Module
    bases: Mapping[str, 'ConfigFile']

    def assigned(self) -> set[str]:
        """Names assigned outside of functions in this file."""
        return {name for name, _ in _assignments(self.tree)}

    def redefined(self) -> set[str]:
        """Names that this file assigns although one of its bases does, but for a file's own (``_name``)."""
        below = [base for each in self.bases.values() for base in each.chain()]
        names = self.assigned() & {name for base in below for name in base.assigned()}
        changed_in_place = {
            node.target.id
            for file in (self, *below)
            for node in ast.walk(file.tree)
            if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)
        }
        return {name for name in names - changed_in_place if not name.startswith('_')}

    def constants(self) -> dict[str, ast.expr]:
        """Names assigned once, to an expression that refers to no other name.

        A dict is left out where a base has one too, or may have one: mmengine merges the two.
        """
        once = Counter(name for name, _ in _assignments(self.tree))
        found = {}
        for node in self.tree.body:
            for name, value in _named_values(node):
                if once[name] == 1 and _is_constant(value) and not (_is_dict(value) and self._merges(name)):
                    found[name] = value
        return found

    def _merges(self, name: str) -> bool:
        """Whether a dict of this name is merged into what a base assigns."""
        values = [
            value
            for base in self.bases.values()
            for file in base.chain()
            for node in file.tree.body
            for other, value in _named_values(node)
            if other == name
        ]
        return not all(isinstance(value, ast.Constant) for value in values)

    def chain(self) -> Iterator['ConfigFile']:
        """This file, then its bases, the nearest first."""
        yield self
        for base in self.bases.values():
            yield from base.chain()


def parse_file(path: Path) -> ConfigFile | None:
    """Parse a config and its bases; None for what is no Python, also where placeholders make it so."""
    if path.suffix != '.py' or not path.is_file():
        return None
    try:
        tree = ast.parse(path.read_text(encoding='utf-8'))
    except (SyntaxError, UnicodeDecodeError):
        return None
    bases = {}
    for name in _base_names(tree):
        base = parse_file(path.parent / name) if '::' not in name else None
        if base is not None:
            bases[name] = base
    return ConfigFile(path, tree, bases)


def evaluate(source: ConfigFile | None, path: Path, variables: Mapping[str, ast.expr]) -> Config:
    """The config of a file whose variables have these values, in its bases too."""
    if source is None or not variables:
        return Config.fromfile(os.fspath(path))
    with tempfile.TemporaryDirectory() as folder:
        config = Config.fromfile(os.fspath(_write_copy(source, variables, Path(folder))))
    text = '\n'.join(f'{file.path}\n{file.path.read_text(encoding="utf-8")}' for file in source.chain())
    return Config(config.to_dict(), cfg_text=text, filename=os.fspath(path))


def as_expression(value: Any) -> ast.expr:
    """The syntax tree of a plain value."""
    return ast.parse(repr(value), mode='eval').body


def is_literal(value: Any) -> bool:
    """Whether a value can be written into a file."""
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):
        return False


def _assignments(tree: ast.AST) -> Iterator[tuple[str, ast.Assign | ast.AnnAssign]]:
    """(name, statement) of the assignments to plain names outside of functions, in order."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Assign | ast.AnnAssign):
            yield from ((name, node) for name, _ in _named_values(node))
        yield from _assignments(node)


def _named_values(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """(name, value) of an assignment to plain names; nothing for other statements."""
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from ((target.id, node.value) for target in targets if isinstance(target, ast.Name))


def _base_names(tree: ast.Module) -> list[str]:
    for name, node in _assignments(tree):
        if name == '_base_':
            try:
                value = ast.literal_eval(node.value) if node.value else []
            except ValueError:
                return []
            return [value] if isinstance(value, str) else list(value)
    return []


def _write_copy(source: ConfigFile, variables: Mapping[str, ast.expr], folder: Path) -> Path:
    """Write a file and its bases into a folder, with the variables' values in place; return its path."""
    number = len(list(folder.iterdir()))
    copy = folder / f'{number}_{source.path.name}'
    copy.touch()
    bases = [
        os.fspath(_write_copy(source.bases[name], variables, folder))
        if name in source.bases
        else name
        if '::' in name
        else os.path.abspath(source.path.parent / name)
        for name in _base_names(source.tree)
    ]
    values = {**variables, **({'_base_': as_expression(bases)} if bases else {})}
    tree = ast.parse(source.path.read_text(encoding='utf-8'))
    for name, node in _assignments(tree):
        if name in values:
            node.value = values[name]
    parts = {
        'fileDirname': os.path.dirname(os.path.abspath(source.path)),
        'fileBasename': source.path.name,
        'fileBasenameNoExtension': source.path.stem,
        'fileExtname': source.path.suffix,
    }
    text = ast.unparse(ast.fix_missing_locations(tree))
    copy.write_text(_PREDEFINED.sub(lambda match: parts[match[1]], text), encoding='utf-8')
    return copy


def _is_constant(value: ast.expr) -> bool:
    return {node.id for node in ast.walk(value) if isinstance(node, ast.Name)} <= {'dict'}


def _is_dict(value: ast.expr) -> bool:
    is_call = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == 'dict'
    return is_call or isinstance(value, ast.Dict)
