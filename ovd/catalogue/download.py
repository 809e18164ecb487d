"""One file over HTTPS: resumed where it was cut off, checked, and only then under its name.

Reading order: download, its attempts, ``check_hash``.
"""

import errno
import hashlib
import http.client
import json
import os
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Bytes that are there, bytes in all (None: unknown).
Progress = Callable[[int, int | None], None]

_BLOCK = 1 << 20
_CONNECTION = (
    urllib.error.URLError,
    http.client.HTTPException,
    TimeoutError,
    ConnectionError,
    ssl.SSLError,
)
_LOOPBACK = ('localhost', '127.0.0.1', '::1')
_AGENT = 'ovd (+https://pypi.org/project/ovd)'


class DownloadError(OSError):
    """A file that could not be downloaded; the message is one line and names its address."""


class NotThereError(DownloadError):
    """The server has no such file."""


class _Cut(Exception):
    """The connection ended before the file did; what came is kept."""


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to HTTPS, or to this machine."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(
    url: str,
    target: str | os.PathLike[str],
    sha256: str | None = None,
    size: int | None = None,
    progress: Progress | None = None,
    attempts: int = 3,
    timeout: float = 30.0,
) -> Path:
    """Download a file; what an earlier call got is not fetched again.

    Until it is whole and checked it lies beside the target as ``.NAME.part``.

    Args:
        url: https, or http of this machine.
        target: the file to write.
        sha256: of the file, or its first hexadecimal digits.
        size: expected bytes.
        progress: called as bytes arrive.
        attempts: connections that may be cut off before the call gives up.
        timeout: seconds without a byte after which a connection counts as cut off.
    Raises:
        NotThereError: the server says that there is no such file.
        DownloadError: no connection, cut off, no space left, or another file than expected.
    """
    check_address(url)
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'.{target.name}.part')
    note = target.with_name(f'.{target.name}.part.json')
    if _noted(note).get('url') != url:
        _forget(part, note)
    for attempt in range(1, attempts + 1):
        resumed = part.is_file()
        try:
            _attempt(url, part, note, size, progress, timeout)
        except _Cut as cut:
            if attempt == attempts:
                raise DownloadError(
                    f'{url} was cut off after {_bytes_of(part)} bytes ({cut}); they are kept, '
                    f'fetch again to go on'
                ) from None
            continue
        problem = _problem(part, sha256, size)
        if problem is None:
            break
        _forget(part, note)
        if not resumed:
            raise DownloadError(f'{url} gave another file than expected: {problem}; nothing was kept')
    else:
        raise DownloadError(f'{url} gave another file than expected; nothing was kept')
    os.replace(part, target)
    note.unlink(missing_ok=True)
    return target


def check_hash(path: Path, sha256: str) -> str | None:
    """What is wrong with a file of which a hash, or the beginning of one, was published; None for nothing."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    found = digest.hexdigest()
    is_same = found.startswith(sha256.lower())
    return None if is_same else f'SHA-256 {found[:16]}..., published is {sha256[:16]}'


def check_address(url: str) -> None:
    """Refuse (DownloadError) what is neither https nor http of this machine."""
    parts = urlsplit(url)
    if parts.scheme == 'https' or (parts.scheme == 'http' and parts.hostname in _LOOPBACK):
        return
    raise DownloadError(f'{url} is not fetched: expected an address with https')


def _attempt(
    url: str, part: Path, note: Path, size: int | None, progress: Progress | None, timeout: float
) -> None:
    """One connection; appends to what is there if the server still has the same file."""
    start = _bytes_of(part)
    headers = {'User-Agent': _AGENT, 'Accept-Encoding': 'identity'}
    tag = _noted(note).get('tag')
    if start and tag:
        headers |= {'Range': f'bytes={start}-', 'If-Range': tag}
    elif start:
        _forget(part, note)
        start = 0
    opener = urllib.request.build_opener(_CheckedRedirects)
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=timeout) as answer:
            if answer.status != 206:
                start = 0
            total = _total(answer, start)
            _require_space(part, (total or size or 0) - start, url)
            note.write_text(json.dumps({'url': url, 'tag': _tag(answer)}), encoding='utf-8')
            _copy(answer, part, start, total, progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part is as long as the file, or longer
            return
        kind = NotThereError if error.code in (404, 410) else DownloadError
        raise kind(f'{url} cannot be fetched: the server answers {error.code} {error.reason}') from None
    except DownloadError:
        raise
    except _CONNECTION as error:
        reason = ' '.join(str(getattr(error, 'reason', error)).split())[:120]
        if _bytes_of(part) > start or start:
            raise _Cut(reason or type(error).__name__) from None
        raise DownloadError(f'{url} cannot be reached: {reason or type(error).__name__}') from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(f'{url} cannot be written to {part.parent}: {error.strerror}') from None
        _forget(part, note)
        raise DownloadError(f'{url}: no space left in {part.parent}; nothing was kept') from None


def _copy(answer: Any, part: Path, start: int, total: int | None, progress: Progress | None) -> None:
    done = start
    with part.open('r+b' if start else 'wb') as file:
        file.seek(start)
        file.truncate()
        while block := answer.read(_BLOCK):
            file.write(block)
            done += len(block)
            if progress is not None:
                progress(done, total)
        file.flush()
        os.fsync(file.fileno())
    if total is not None and done < total:
        raise _Cut(f'of {total}')


def _total(answer: Any, start: int) -> int | None:
    """Bytes of the whole file, as the server says."""
    _, _, whole = (answer.headers.get('Content-Range') or '').rpartition('/')
    if whole.isdecimal():
        return int(whole)
    length = answer.headers.get('Content-Length') or ''
    return start + int(length) if length.isdecimal() else None


def _tag(answer: Any) -> str | None:
    """What tells this file from a later one at the address: a strong ETag, or its date."""
    tag = answer.headers.get('ETag')
    if tag and not tag.startswith('W/'):
        return str(tag)
    return answer.headers.get('Last-Modified')


def _require_space(part: Path, needed: int, url: str) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise DownloadError(f'{url} needs {needed:,} bytes, {part.parent} has {free:,} left')


def _problem(part: Path, sha256: str | None, size: int | None) -> str | None:
    if size is not None and _bytes_of(part) != size:
        return f'{_bytes_of(part)} bytes, published are {size}'
    return None if sha256 is None else check_hash(part, sha256)


def _noted(note: Path) -> dict[str, Any]:
    try:
        content = json.loads(note.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _forget(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
