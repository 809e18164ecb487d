"""Small weights in the official layouts, and a loopback server that hands them out, well or badly."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovd.conversion.glip import _ELEMENTS


def glip_as_mmdet(ours: dict[str, Tensor], deep: bool = True) -> dict[str, Tensor]:
    """Our keys under the names of mmdet's files."""
    parts = {'fuse.': 0, 'text.': 1, 'dyhead.': 2} if deep else {'text.': 0, 'dyhead.': 0}
    head = {
        'boxes.': 'bbox_pred.',
        'project_text.': 'dot_product_projection_text.',
        'bias_text': 'bias_lang',
        'bias': 'bias0',
    }
    theirs = {}
    for key, value in ours.items():
        name = key
        if key.startswith('text.model.'):
            name = f'language_model.language_backbone.body.model.{key.removeprefix("text.model.")}'
        elif match := re.fullmatch(r'bbox_head\.blocks\.(\d+)\.(.+)', key):
            part = next(number for start, number in parts.items() if match[2].startswith(start))
            index = int(match[1]) * (3 if deep else 1) + part
            name = f'bbox_head.head.dyhead_tower.{index}.{_element(match[2])}'
        elif key.startswith('bbox_head.'):
            inner = key.removeprefix('bbox_head.')
            for old, new in head.items():
                if inner.startswith(old):
                    inner = new + inner.removeprefix(old)
                    break
            name = f'bbox_head.head.{inner}'
        theirs[name] = value
    return theirs


def _element(name: str) -> str:
    """The published name of a key inside one element of GLIP's tower."""
    for pattern, target in _ELEMENTS:
        groups = re.findall(r'\([^()]*\)', pattern)
        back = re.escape(target)
        for number, group in enumerate(groups, start=1):
            back = back.replace(rf'\\{number}', group)
        if match := re.fullmatch(back, name):
            found = pattern.replace('\\.', '.')
            for group, value in zip(groups, match.groups()):
                found = found.replace(group, value, 1)
            return found
    raise KeyError(name)


def as_microsoft(key: str) -> str:
    """The authors' name of a key in mmdet's format."""
    for old, new in (
        ('backbone.patch_embed.projection', 'backbone.body.patch_embed.proj'),
        ('backbone.stages', 'backbone.body.layers'),
        ('backbone.patch_embed', 'backbone.body.patch_embed'),
        ('backbone.norm', 'backbone.body.norm'),
        ('neck.lateral_convs.0.conv', 'backbone.fpn.fpn_inner2'),
        ('neck.lateral_convs.1.conv', 'backbone.fpn.fpn_inner3'),
        ('neck.lateral_convs.2.conv', 'backbone.fpn.fpn_inner4'),
        ('neck.fpn_convs.0.conv', 'backbone.fpn.fpn_layer2'),
        ('neck.fpn_convs.1.conv', 'backbone.fpn.fpn_layer3'),
        ('neck.fpn_convs.2.conv', 'backbone.fpn.fpn_layer4'),
        ('neck.fpn_convs.3.conv', 'backbone.fpn.top_blocks.p6'),
        ('neck.fpn_convs.4.conv', 'backbone.fpn.top_blocks.p7'),
        ('bbox_head.', 'rpn.'),
        ('language_model.', ''),
    ):
        if key.startswith(old):
            key = new + key.removeprefix(old)
            break
    for old, new in (
        ('attn.w_msa', 'attn'),
        ('ffn.layers.0.0', 'mlp.fc1'),
        ('ffn.layers.1', 'mlp.fc2'),
        ('dyconvs', 'DyConv'),
        ('attnconv', 'AttnConv'),
    ):
        key = key.replace(old, new)
    return f'module.{key}'


def glip_as_microsoft(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our keys and a Swin's merging weights as the authors' files have them."""
    theirs = {}
    for key, value in glip_as_mmdet(ours).items():
        if re.search(r'downsample\.(reduction\.weight|norm\.(weight|bias))', key):
            neighbours = value.unflatten(-1, (-1, 4)).transpose(-1, -2)
            value = neighbours[..., [0, 2, 1, 3], :].flatten(-2).contiguous()
        if not key.endswith('relative_position_index'):
            theirs[as_microsoft(key)] = value
    return theirs


@dataclass
class Behaviour:
    """How the server answers for one path.

    Attributes:
        content: of the file.
        cut_after: bytes after which the connection is closed, once for each number.
        redirect: another path or address.
        status: instead of the file.
        tag: the ETag; None leaves out what resuming needs.
    """

    content: bytes = b''
    cut_after: list[int] = field(default_factory=list)
    redirect: str | None = None
    status: int = 200
    tag: str | None = '"one"'


class Server:
    """Files by path, and what was asked: (path, first byte)."""

    def __init__(self, port: int) -> None:
        self.address = f'http://127.0.0.1:{port}'
        self.files: dict[str, Behaviour] = {}
        self.asked: list[tuple[str, int]] = []

    def put(self, name: str, content: bytes | Path, **options: Any) -> str:
        """Serve a file; returns its address."""
        data = content.read_bytes() if isinstance(content, Path) else content
        self.files[f'/{name}'] = Behaviour(data, **options)
        return f'{self.address}/{name}'


@contextmanager
def serving() -> Iterator[Server]:
    """A server on this machine's loopback."""
    holder: list[Server] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server, path = holder[0], self.path.partition('?')[0]
            asked = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range') or '')
            known = server.files.get(path)
            if known is None or known.status != 200:
                server.asked.append((path, 0))
                self.send_error(404 if known is None else known.status)
                return
            if known.redirect is not None:
                self.send_response(302)
                self.send_header('Location', known.redirect)
                self.end_headers()
                return
            whole = len(known.content)
            start = int(asked[1]) if asked and self.headers.get('If-Range') == known.tag else 0
            server.asked.append((path, start))
            if start >= whole > 0:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header('Content-Length', str(whole - start))
            if known.tag:
                self.send_header('ETag', known.tag)
            if start:
                self.send_header('Content-Range', f'bytes {start}-{whole - 1}/{whole}')
            self.end_headers()
            end = known.cut_after.pop(0) if known.cut_after else whole
            self.wfile.write(known.content[start:end])
            self.wfile.flush()
            if end < whole:
                self.connection.close()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    holder.append(Server(http.server_address[1]))
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield holder[0]
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def as_bytes(content: Any, path: Path) -> bytes:
    """A PyTorch file."""
    torch.save(content, path)
    return path.read_bytes()
