"""Fixtures of every test: no sockets, one torch thread, isolated caches, no state left to the next test."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ovd  # noqa: F401  (installs the stand-ins before any host is imported)

_LOCAL = ('127.0.0.1', '::1', 'localhost')


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves this machine: the suite proves that nothing needs one."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def is_local(sock: socket.socket, address: Any) -> bool:
        return sock.family == socket.AF_UNIX or address[0] in _LOCAL

    def guarded(real: Any) -> Any:
        def call(sock: socket.socket, address: Any) -> Any:
            if not is_local(sock, address):
                raise OSError(f'a test tried to reach {address!r}; the suite runs without a network')
            return real(sock, address)

        return call

    monkeypatch.setattr(socket.socket, 'connect', guarded(connect))
    monkeypatch.setattr(socket.socket, 'connect_ex', guarded(connect_ex))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Caches go to the test's own folder; seeds and thread count are the same for every test."""
    monkeypatch.setenv('OVD_CACHE', str(tmp_path / 'cache'))
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _keep_default_scope() -> Iterator[None]:
    """Restore mmengine's default scope, which is global: what a bare name means must not depend on order."""

    def scopes() -> dict[str, Any]:
        loaded = sys.modules.get('mmengine.registry')  # importing it would slow the light tests down
        return {} if loaded is None else loaded.DefaultScope._instance_dict

    before = dict(scopes())
    yield
    scopes().clear()
    scopes().update(before)


# Two of them: a fixture of a whole module may set the scope for its tests, but not for the next module.
scope_of_test = pytest.fixture(autouse=True)(_keep_default_scope)
scope_of_module = pytest.fixture(autouse=True, scope='module')(_keep_default_scope)
