"""Errors that Python or a library raised on their own: said with what was being done."""

import errno
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

MAX_CALL = 160  # characters


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Note on errors of the block what was being done, such as 'building the model of configs/a.py'."""
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise


def in_context(error: BaseException, text: str, argv: Sequence[str]) -> str:
    """The message of an error; one that nobody wrote for a reader is put into its context.

    A message counts as written for a reader where a ``raise`` statement made it, and it has several words.

    Args:
        text: the message on one line.
        argv: arguments of the command, for errors without a note of ``doing``.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return text
    is_raised = (frames[-1].line or '').startswith('raise')
    is_errno = isinstance(error, OSError) and error.strerror is not None
    if is_raised and (' ' in text or not error.args) and not is_errno:
        return text
    notes = getattr(error, '__notes__', ())
    call = ' '.join(argv)
    call = call if len(call) <= MAX_CALL else f'{call[:MAX_CALL]}...'
    what = notes[0] if notes else f'running {call!r}' if call else 'running'
    where = f'{type(error).__name__} in {Path(frames[-1].filename).name}:{frames[-1].lineno}'
    return f'while {what}: {_reason(error, text)} ({where})'


def _reason(error: BaseException, text: str) -> str:
    if isinstance(error, OSError) and error.strerror is not None:
        file = f'{error.filename}: ' if error.filename is not None else ''
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f'{file}the disk is full; files that were finished before are kept'
        return f'{file}{error.strerror[:1].lower()}{error.strerror[1:]}'
    if isinstance(error, LookupError) and ' ' not in text:
        return f'no entry {text!r}'
    return text
