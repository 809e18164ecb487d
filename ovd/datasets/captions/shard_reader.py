"""Read tar shards in webdataset's layout, and detect damaged ones.

webdataset opens shards and groups members into samples. Members are read here, to distinguish a truncated
shard from a complete one, and to name shard and member in messages.
"""

import glob
import json
import lzma
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from webdataset.gopen import gopen
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext, group_by_keys

from ..images import BrokenImageError, decode_image
from .dataset import SkipCounter

IMAGE_KEYS = ('jpg', 'jpeg', 'png', 'webp')
TEXT_KEYS = ('txt', 'text')
MAX_CONSECUTIVE_PROBLEMS = 1000  # more are probably not damaged data, but a wrong setting
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_MAX_EXTENDED_BYTES = 1 << 20
_REMOTE = re.compile(r'[a-z][a-z0-9+.-]*:', re.IGNORECASE)


class Part(NamedTuple):
    """Every ``step``-th sample of a shard, starting at index ``first``."""

    shard: str
    first: int = 0
    step: int = 1


class RawPair(NamedTuple):
    """An encoded image and its caption; ``name`` is 'shard.tar#key'."""

    name: str
    image: bytes
    caption: str


class ShardReader:
    """Reads pairs from shards; skips and counts unusable ones, or raises.

    Args:
        broken: 'skip' or 'refuse', see ``CaptionShards``.
        caption_field: key of the caption in json members.
        max_member_bytes: larger members are not read.
    """

    def __init__(
        self, broken: str = 'skip', caption_field: str = 'caption', max_member_bytes: int = 1 << 28
    ) -> None:
        self.broken = broken
        self.caption_field = caption_field
        self.max_member_bytes = max_member_bytes
        self.skipped = SkipCounter('samples and parts of shards')
        self._consecutive_problems = 0

    def read(self, part: Part) -> Iterator[RawPair]:
        """Usable pairs of a part, in the order of the shard."""
        samples = group_by_keys(self._members(part.shard), handler=partial(self._repeated, part.shard))
        for index, sample in enumerate(samples):
            if index % part.step == part.first:
                pair = self._pair(part.shard, sample)
                if pair is not None:
                    yield pair

    def decode(self, pair: RawPair) -> np.ndarray | None:
        """Decode the image of a pair: uint8 [H, W, 3] RGB; None if it is broken."""
        try:
            image = decode_image(pair.image, pair.name)
        except BrokenImageError as error:
            self.problem('broken images', str(error))
            return None
        self._consecutive_problems = 0
        return image

    def problem(self, kind: str, message: str) -> None:
        """Count a problem; raise ValueError if ``broken`` is 'refuse' or there are too many in a row."""
        if self.broken == 'refuse':
            raise ValueError(message)
        self.skipped.add(kind, message)
        self._consecutive_problems += 1
        if self._consecutive_problems >= MAX_CONSECUTIVE_PROBLEMS:
            raise ValueError(
                f'{MAX_CONSECUTIVE_PROBLEMS} unusable samples in a row ({self.skipped}), last {message}'
            )

    def _members(self, shard: str) -> Iterator[dict[str, Any]]:
        """Members of a shard, in the form of ``group_by_keys``; reading stops where the shard is damaged."""
        name = ''
        try:
            with gopen(shard, 'rb') as stream:
                with tarfile.open(fileobj=stream, mode='r|*', tarinfo=_StrictInfo) as archive:
                    for member in archive:
                        name = member.name
                        key, suffix = base_plus_ext(name)
                        is_wanted = self._is_wanted(key, suffix)
                        refused = self._refused(member) if is_wanted else None
                        file = archive.extractfile(member) if is_wanted and refused is None else None
                        archive.members = []  # type: ignore[attr-defined]  # or it stores all headers
                        if refused is not None:
                            self.problem(refused[0], f'shard {shard}, member {name}: {refused[1]}')
                        elif file is not None:
                            yield {'fname': name, 'data': file.read(), '__url__': shard}
        except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            self.problem('broken shards', f'shard {shard}, {f"member {name}" if name else "start"}: {error}')
            key, _ = base_plus_ext(name)
            if key is not None and 'end of data' in str(error):
                yield {'fname': f'{key}.__bad__', 'data': True, '__url__': shard}  # drops its sample

    def _refused(self, member: tarfile.TarInfo) -> tuple[str, str] | None:
        """Kind and description of a member that is not read: a link, a device, or one that is too large."""
        if not member.isreg() and not member.isdir():
            return 'links and devices', 'it is not a regular file'
        if member.size > self.max_member_bytes:
            return (
                'members beyond max_member_bytes',
                f'it has {member.size} bytes, max_member_bytes is {self.max_member_bytes}',
            )
        return None

    @staticmethod
    def _is_wanted(key: str | None, suffix: str | None) -> bool:
        """Whether a member is an image or caption; others, such as webdataset's metadata, are not read."""
        if key is None or suffix is None or os.path.basename(key).startswith('__'):
            return False
        return suffix.lower() in (*IMAGE_KEYS, *TEXT_KEYS, 'json')

    def _repeated(self, shard: str, error: Exception) -> bool:
        """Error handler of ``group_by_keys``: skip a member whose name is repeated within its sample."""
        message, duplicate, _ = str(error.args[0]).partition(' in tar file')
        if not duplicate:
            raise error
        self.problem('repeated members', f'shard {shard}, member {message}')
        return True

    def _pair(self, shard: str, sample: dict[str, Any]) -> RawPair | None:
        name = f'{shard}#{sample["__key__"]}'
        image = next((sample[key] for key in IMAGE_KEYS if key in sample), None)
        if image is None:
            self.problem('samples without image', f'sample {name} has no image ({", ".join(IMAGE_KEYS)})')
            return None
        try:
            caption = self._caption(sample)
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deeply
            self.problem('unreadable captions', f'caption of sample {name}: {error}')
            return None
        if caption is None:
            fields = f'{", ".join(TEXT_KEYS)}, or {self.caption_field!r} in json'
            self.problem('samples without caption', f'sample {name} has no caption ({fields})')
            return None
        if not isinstance(caption, str) or not caption.strip():
            self.problem('empty captions', f'sample {name} has the caption {caption!r}')
            return None
        return RawPair(name, image, caption.strip())

    def _caption(self, sample: dict[str, Any]) -> Any:
        for key in TEXT_KEYS:
            if key in sample:
                return sample[key].decode('utf-8-sig')
        content = json.loads(sample['json']) if 'json' in sample else None
        return content.get(self.caption_field) if isinstance(content, dict) else None


class _StrictInfo(tarfile.TarInfo):
    """Member headers; tarfile takes a damaged one for the end of the archive, this class raises."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> '_StrictInfo':
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            what = {'empty header': 'no end mark'}.get(str(error), str(error))
            raise tarfile.ReadError(f'damaged or truncated ({what})') from None
        # tarfile reads extended headers, which hold long names, into memory.
        if info.type in _EXTENDED and info.size > _MAX_EXTENDED_BYTES:
            raise tarfile.ReadError(f'an extended header of {info.size} bytes')
        return info


def expand_shards(patterns: str | Sequence[str]) -> list[str]:
    """Expand shard patterns: braces as in webdataset; '*', '?' and '[' for files on disk.

    Raises:
        FileNotFoundError: a pattern with '*' matches nothing.
        ValueError: no pattern, or a repeated shard.
    """
    shards: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in expand_urls(pattern):
            if is_remote(name) or not glob.has_magic(name):
                shards.append(name)
                continue
            found = sorted(glob.glob(name))
            if not found:
                raise FileNotFoundError(f'no shard matches {name}')
            shards += found
    if not shards:
        raise ValueError('no shards given')
    repeated = next((shard for shard, count in Counter(shards).items() if count > 1), None)
    if repeated is not None:
        raise ValueError(f'shard {repeated} is repeated')
    return shards


def is_remote(shard: str) -> bool:
    """Whether webdataset opens the shard as a URL or pipe instead of a local path."""
    return _REMOTE.match(shard) is not None
