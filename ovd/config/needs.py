"""Files that a config needs, checked before anything is built."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import ConfigError

STAGES = ('train', 'test', 'demo')
_ALWAYS = 'always'


def check_needs(config: Mapping[str, Any], stage: str | None = None, made_here: Collection[Any] = ()) -> None:
    """Refuse to start while files are missing that the config says it ``needs``.

    ``needs`` is a list of ``dict(path=..., what=..., how=...)``: a file or folder, what it is, how to get it;
    or a dict of such lists by stage: ``always``, ``train``, ``test``, ``demo``. A path of None, from a
    variable that was switched off (``load_from=None``), needs nothing.

    Args:
        stage: what the files are needed for; None checks those of every stage.
        made_here: paths that the caller is about to make.
    Raises:
        FileNotFoundError: lists every missing path with its instruction.
        ConfigError: the section is malformed.
    """
    missing = []
    for where, need in _needs_of(config.get('needs'), stage):
        unknown = set(need) - {'path', 'what', 'how'}
        if unknown or 'path' not in need:
            raise ConfigError(f'{where} takes path, what and how, got {sorted(need)}')
        path = need.get('path')
        if path is not None and path not in made_here and not Path(path).exists():
            what = f' ({need["what"]})' if need.get('what') else ''
            how = f': {need["how"]}' if need.get('how') else ''
            missing.append(f'{path}{what}{how}')
    if missing:
        plural = 'files are' if len(missing) > 1 else 'file is'
        raise FileNotFoundError(
            f'{len(missing)} needed {plural} missing: {"; ".join(missing)}; data that are elsewhere: set '
            'data_root, or edit `needs` of your config'
        )


def _needs_of(section: Any, stage: str | None) -> Iterator[tuple[str, Any]]:
    """(where it stands, need) of every need of a stage."""
    by_stage = section if isinstance(section, Mapping) else {_ALWAYS: section or ()}
    unknown = sorted(set(by_stage) - {_ALWAYS, *STAGES})
    if unknown:
        raise ConfigError(f'needs has the stages {_ALWAYS}, {", ".join(STAGES)}; got {", ".join(unknown)}')
    for name, needs in by_stage.items():
        if stage is None or name in (_ALWAYS, stage):
            where = f'needs.{name}' if isinstance(section, Mapping) else 'needs'
            yield from ((f'{where}[{index}]', need) for index, need in enumerate(needs or ()))
