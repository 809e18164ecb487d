"""From a name to a model folder: what would be fetched, fetching it, and converting it.

Nothing else in ovd opens a socket unless its caller names something remote.
Reading order: list_models, plan_fetch, fetch; CONVERTERS turn what was fetched into folders.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...catalogue.download import DownloadError, NotThereError, check_hash, download
from ...catalogue.entries import Entry, RemoteFile, entries, find_entry
from ...files import model_home, write_json
from .model_folder import CARD, HASHES, ModelCard, place, read_model_folder, verify_hashes, write_hashes

if TYPE_CHECKING:
    from ...conversion.converted import Converted

# File, bytes that are there, bytes in all (None: unknown).
FetchProgress = Callable[[str, int, int | None], None]

_DOWNLOADS = '.downloads'
_TOKENIZER_FILES = ('tokenizer', 'vocab', 'merges', 'special_tokens', 'spiece', 'sentencepiece')


@dataclass(frozen=True)
class KnownModel:
    """A row of the list of models.

    Attributes:
        entry: of the catalogue; None for a model folder of the user's own.
        name: of the model.
        kind: 'detection', 'segmentation', 'grounding' or 'encoder'.
        size: bytes on disk, else of the files to be fetched; None: unknown.
        licence: of the weights; None: not confirmed.
        commands: what of the command line it serves.
        on_disk: whether it can be used now.
    """

    entry: Entry | None
    name: str
    kind: str
    size: int | None
    licence: str | None
    commands: tuple[str, ...]
    on_disk: bool


@dataclass(frozen=True)
class PlannedFile:
    """A file of a plan.

    Attributes:
        file: of the catalogue.
        found: where it is already; None: it is to be fetched.
    """

    file: RemoteFile
    found: Path | None


@dataclass(frozen=True)
class FetchPlan:
    """What fetching a model would do.

    Attributes:
        entry: of the catalogue.
        destination: the folder that appears.
        files: what is needed.
        requires: the same for models that it needs and that are not on this disk.
        is_there: the model is on this disk already; nothing is done.
    """

    entry: Entry
    destination: Path
    files: tuple[PlannedFile, ...]
    requires: tuple['FetchPlan', ...] = ()
    is_there: bool = False

    @property
    def size(self) -> int | None:
        """Bytes to be fetched, as far as published; None where one is not."""
        wanted = [] if self.is_there else [p.file for p in self.files if p.found is None]
        sizes = [file.size or file.about for file in wanted if not file.optional]
        sizes += [plan.size for plan in self.requires]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def by_hand(self) -> tuple[RemoteFile, ...]:
        """Files that only a page gives, to be brought with ``source``."""
        own = () if self.is_there else (p.file for p in self.files if p.found is None and not p.file.urls)
        return (*own, *(file for plan in self.requires for file in plan.by_hand))

    def lines(self) -> list[str]:
        """The plan for a reader: files with their sizes and addresses, licence, destination."""
        if self.is_there:
            return [f'{self.entry.name} is on this disk: {self.destination}']
        shown = [line for plan in self.requires for line in plan.lines()]
        shown += [f'{self.entry.name}: {self.entry.title}']
        for planned in self.files:
            where = planned.found or (planned.file.urls[0] if planned.file.urls else planned.file.page)
            hand = '' if planned.found or planned.file.urls else ', by hand'
            size = _readable(planned.file.size or planned.file.about)
            shown.append(f'  {planned.file.name} ({size}{hand}): {where}')
        shown.append(f'  licence: {self.entry.licence or "not confirmed, see " + str(self.entry.source)}')
        if self.entry.unverified:
            shown.append(f'  not confirmed: {", ".join(self.entry.unverified)}')
        return [*shown, f'  to {self.destination}']


def list_models() -> list[KnownModel]:
    """All models of the catalogue, and the user's own folders under ``$OVD_HOME``."""
    home = model_home()
    folders = (path.parent for path in home.glob(f'*/{HASHES}')) if home.is_dir() else ()
    there = {folder.name: folder for folder in folders if not folder.name.startswith('.')}
    rows = []
    for name, entry in entries().items():
        folder = there.pop(name, None)
        size = entry.size if folder is None else _bytes_in(folder)
        rows.append(
            KnownModel(entry, name, entry.kind, size, entry.licence, entry.commands, folder is not None)
        )
    for name, folder in sorted(there.items()):
        rows.append(KnownModel(None, name, 'own', _bytes_in(folder), None, ('predict', 'label'), True))
    return rows


def plan_fetch(name: str, source: str | Path | None = None) -> FetchPlan:
    """What ``fetch`` would do; nothing is written and no socket opened.

    Args:
        name: of an entry of the catalogue.
        source: a folder or file that was brought by hand.
    Raises:
        KeyError: no such entry; the message names similar ones.
        FileNotFoundError: ``source`` is absent or lacks a file.
    """
    return _plan(name, None if source is None else Path(source), set())


def _plan(name: str, source: Path | None, seen: set[str]) -> FetchPlan:
    entry = find_entry(name)
    if name in seen:
        raise ValueError(f'the catalogue entry {name!r} needs itself')
    destination = model_home() / name
    is_there = (destination / HASHES).is_file()
    beside = source.parent if source is not None and source.is_file() else source
    requires = () if is_there else tuple(_plan(need, beside, {*seen, name}) for need in entry.requires)
    requires = tuple(plan for plan in requires if not plan.is_there)
    files = tuple(PlannedFile(file, _found(file, entry, source)) for file in entry.files)
    if source is not None and not seen and not is_there:
        _require_brought(entry, files, source)
    return FetchPlan(entry, destination, files, requires, is_there)


def _found(file: RemoteFile, entry: Entry, source: Path | None) -> Path | None:
    """Where a file is that was brought by hand: under its own or its published name."""
    if source is None:
        return None
    if not source.exists():
        raise FileNotFoundError(f'{source} does not exist')
    published = [Path(url.partition('?')[0]).name for url in file.urls]
    if source.is_file():
        wanted = [each for each in entry.files if not each.optional]
        is_only = len(wanted) == 1 or file is wanted[0]
        if source.name in (Path(file.name).name, *published) or is_only:
            return source
        source = source.parent
    for name in (file.name, Path(file.name).name, *published):
        if (source / name).is_file():
            return source / name
    return None


def _require_brought(entry: Entry, files: Iterable[PlannedFile], source: Path) -> None:
    missing = [p.file.name for p in files if p.found is None and not p.file.optional and not p.file.urls]
    if missing:
        raise FileNotFoundError(f'{source} lacks {", ".join(missing)} of {entry.name}')


def fetch(
    name: str,
    source: str | Path | None = None,
    progress: FetchProgress | None = None,
    keep_downloads: bool = False,
) -> Path:
    """Fetch a model of the catalogue and convert it to a model folder under ``$OVD_HOME``.

    A call that was cut off goes on where it stopped. The folder appears whole, or not at all.

    Args:
        name: of an entry of the catalogue.
        source: a folder or file that was brought by hand; only what it lacks is downloaded.
        progress: called as bytes arrive.
        keep_downloads: keep the published files beside the folder.
    Returns:
        the folder; ``Predictor.from_pretrained(name)`` reads it, for an encoder ``load_clip(name)``.
    Raises:
        KeyError: no such entry.
        FileNotFoundError: a file has to be brought by hand; the message says from where.
        DownloadError: see ``download``.
        ValueError: a file that is not the published one, that is no such checkpoint, or that does not fill
            the model; the message names it.
    """
    plan = plan_fetch(name, source)
    if plan.is_there:
        verify_hashes(plan.destination)
        return plan.destination
    missing = plan.by_hand
    if missing:
        raise FileNotFoundError(
            f'{name}: get {missing[0].name} by hand from {missing[0].page} and name it as source (--from)'
        )
    beside = None if source is None else Path(source)
    beside = beside.parent if beside is not None and beside.is_file() else beside
    for required in plan.requires:
        fetch(required.entry.name, beside, progress, keep_downloads)
    downloads = model_home() / _DOWNLOADS / name
    with _only_process(name):
        for stale in model_home().glob(f'.{name}.*.tmp'):  # of a process that was killed
            shutil.rmtree(stale, ignore_errors=True)
        paths = {p.file.name: _obtain(p, downloads, progress) for p in plan.files}
        folder = _convert(plan, {key: path for key, path in paths.items() if path is not None}, downloads)
        if not keep_downloads:
            shutil.rmtree(downloads, ignore_errors=True)
    return folder


@contextmanager
def _only_process(name: str) -> Iterator[None]:
    """Refuse (DownloadError) to fetch what another process is fetching."""
    from filelock import FileLock, Timeout

    path = model_home() / _DOWNLOADS / f'{name}.lock'
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise DownloadError(f'{name} is being fetched by another process, see {path}') from None
    path.unlink(missing_ok=True)


def _obtain(planned: PlannedFile, downloads: Path, progress: FetchProgress | None) -> Path | None:
    """The local path of a file, checked; None for an optional one that is not there."""
    file, target = planned.file, downloads / planned.file.name
    if planned.found is not None:
        problem = None if file.sha256 is None else check_hash(planned.found, file.sha256)
        if problem is not None:
            raise ValueError(f'{planned.found} is not the published {file.name}: {problem}')
        return planned.found
    for url in file.urls:
        try:
            if not target.is_file():
                report = None if progress is None else _report(progress, file.name)
                download(url, target, file.sha256, file.size, report)
            return target
        except NotThereError:
            if url == file.urls[-1] and not file.optional:
                raise
    return None


def _report(progress: FetchProgress, name: str) -> Callable[[int, int | None], None]:
    return lambda done, total: progress(name, done, total)


def _convert(plan: FetchPlan, paths: Mapping[str, Path], downloads: Path) -> Path:
    """Make the folder out of the files; files that are refused do not stay among the downloads."""
    entry = plan.entry
    if entry.converter not in CONVERTERS:
        raise ValueError(f'{entry.name}: converter {entry.converter!r} is none of {sorted(CONVERTERS)}')
    plan.destination.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=plan.destination.parent, prefix=f'.{entry.name}.', suffix='.tmp'))
    try:
        made = work / entry.name
        CONVERTERS[entry.converter](entry, paths, made)
        place(made, plan.destination)
    except ValueError:
        for path in paths.values():
            if path.is_relative_to(downloads):
                path.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return plan.destination


def model_card(entry: Entry) -> ModelCard:
    """The card of a published model."""
    figures = {f'{f["data"]}, {f["metric"]} ({f["protocol"]})': f['value'] for f in entry.figures}
    files = [f'{file.name}: {file.urls[0] if file.urls else file.page}' for file in entry.files]
    notes = [f'not confirmed: {", ".join(entry.unverified)}'] if entry.unverified else []
    return ModelCard(
        title=entry.title,
        origin=f'{entry.source}; converted by ovd from the published files',
        licence=entry.licence or 'not confirmed',
        protocol='as published; not measured again on these weights',
        figures=figures,
        notes=(*files, *notes),
    )


# --- what the files become --------------------------------------------------------------------------------


def _model(convert: Callable[[Mapping[str, Any]], 'Converted']) -> Callable[..., None]:
    """A converter of a system's checkpoint: tensors -> config's model -> model folder."""

    def make(entry: Entry, paths: Mapping[str, Path], out: Path) -> None:
        from ...checkpoints.loading import load_tensors

        weights = next(iter(paths.values()))
        _pack(entry, convert(load_tensors(weights)), weights, out)

    return make


def _glip(entry: Entry, paths: Mapping[str, Path], out: Path) -> None:
    from ...checkpoints.loading import load_tensors
    from ...conversion.glip import convert_glip

    weights = next(iter(paths.values()))
    bert = next((path.parent for name, path in paths.items() if name == 'bert/config.json'), None)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        if bert is not None:
            for name, path in paths.items():
                if name.startswith('bert/'):
                    target = Path(folder) / name
                    target.parent.mkdir(exist_ok=True)
                    shutil.copyfile(path, target)
        _pack(entry, convert_glip(load_tensors(weights)), weights, out, Path(folder))


def _groupvit(entry: Entry, paths: Mapping[str, Path], out: Path) -> None:
    from ...conversion.groupvit import convert_groupvit

    _model(convert_groupvit)(entry, paths, out)


def _lseg(entry: Entry, paths: Mapping[str, Path], out: Path) -> None:
    from ...conversion.lseg import convert_lseg

    _model(convert_lseg)(entry, paths, out)


def _detpro(entry: Entry, paths: Mapping[str, Path], out: Path) -> None:
    from torch import Tensor

    from ...checkpoints.loading import load_tensors
    from ...checkpoints.reading import read_checkpoint
    from ...conversion.vild import convert_detpro, convert_detpro_prompts
    from ...text.vocabulary import Vocabulary

    weights, prompts = next(iter(paths.values())), paths[entry.options['prompts']]
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        vectors = read_checkpoint(prompts)
        if not isinstance(vectors, Tensor):
            raise ValueError(f'{prompts}: expected a tensor of prompts, found {type(vectors).__name__}')
        words = Vocabulary.parse(entry.options['vocabulary'])
        convert_detpro_prompts(vectors, words).save(Path(folder) / 'prompts.vocab.safetensors')
        _pack(entry, convert_detpro(load_tensors(weights)), weights, out, Path(folder))


def _pack(
    entry: Entry, converted: 'Converted', weights: Path, out: Path, downloads: Path | None = None
) -> None:
    """Load converted weights into the model of the entry's config, strictly, and write its folder."""
    from ...checkpoints.writing import save_tensors
    from ...config import load_config
    from ..predictor import Predictor

    places = {'{home}': str(model_home()), '{download}': str(downloads or weights.parent)}
    settings = {key: _filled(value, places) for key, value in entry.settings.items()}
    assert entry.config is not None
    config = load_config(_filled(entry.config, places), settings)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        checkpoint = Path(folder) / weights.with_suffix('.safetensors').name
        save_tensors(checkpoint, converted.tensors)
        try:
            predictor = Predictor(config, checkpoint, device='cpu')
        except ValueError as error:
            raise ValueError(f'{weights} does not become {entry.name}: {error}') from None
        predictor.save_pretrained(out, model_card(entry))
    read_model_folder(out)


def _filled(value: Any, places: Mapping[str, str]) -> Any:
    """A setting with the folders it speaks of."""
    if not isinstance(value, str):
        return value
    return re.sub(r'\{home\}|\{download\}', lambda match: places[match[0]], value)


def _clip(entry: Entry, paths: Mapping[str, Path], out: Path) -> None:
    """A release of open_clip, with the settings of open_clip's own list."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    from ...encoders.sources import CONFIG_NAME

    arch, tag = entry.options['arch'], entry.options.get('tag', '')
    model_cfg = open_clip.get_model_config(arch)
    if model_cfg is None:
        raise ValueError(f'{entry.name}: the installed open_clip has no architecture {arch!r}')
    release = get_pretrained_cfg(arch, tag) if tag else {}
    if release.get('quick_gelu'):
        model_cfg['quick_gelu'] = True
    preprocess = {key: list(release[key]) for key in ('mean', 'std') if key in release}
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        write_json(Path(folder) / CONFIG_NAME, {'model_cfg': model_cfg, 'preprocess_cfg': preprocess})
        _encoder(entry, paths, Path(folder), out)


def _clip_folder(entry: Entry, paths: Mapping[str, Path], out: Path) -> None:
    """A folder of open_clip or transformers, written anew as open_clip's."""
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        _encoder(entry, paths, Path(folder), out)


def _encoder(entry: Entry, paths: Mapping[str, Path], folder: Path, out: Path) -> None:
    """Put the files beside each other, open them as a CLIP, and save that with its tokenizer."""
    from ...encoders.loading import TEXT_MODEL_FOLDER, build_clip, save_clip

    for name, path in paths.items():
        target = folder / _file_name(name, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    clip = build_clip(folder)
    save_clip(out, clip.model, clip.config)
    for name, path in paths.items():
        if name.startswith(TEXT_MODEL_FOLDER) or Path(name).name.startswith(_TOKENIZER_FILES):
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, out / name)
    _finish_encoder(entry, out)


def _file_name(name: str, path: Path) -> str:
    """The name of a file in its folder; weights that may have several names get that of their format."""
    if Path(name).suffix in ('.json', '.txt', '.model') or 'index.json' in name or '-of-' in name:
        return name
    with path.open('rb') as file:
        head = file.read(9)
    return 'model.safetensors' if head[8:9] == b'{' else 'pytorch_model.bin'


def _folder(entry: Entry, paths: Mapping[str, Path], out: Path) -> None:
    """The files as they are: an encoder that is read in its published layout."""
    from ...checkpoints.loading import load_tensors

    for name, path in paths.items():
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        if target.suffix in ('.safetensors', '.bin', '.pth', '.pt'):
            load_tensors(target)  # refused here rather than when a training starts
    _finish_encoder(entry, out)


def _finish_encoder(entry: Entry, out: Path) -> None:
    (out / CARD).write_text(model_card(entry).text(entry.name), encoding='utf-8')
    write_hashes(out)


CONVERTERS: dict[str, Callable[[Entry, Mapping[str, Path], Path], None]] = {
    'glip': _glip,
    'groupvit': _groupvit,
    'lseg': _lseg,
    'detpro': _detpro,
    'clip': _clip,
    'clip-folder': _clip_folder,
    'folder': _folder,
}


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())


def _readable(size: int | None) -> str:
    """Bytes for a reader: '605 MB'."""
    if size is None:
        return 'size not published'
    value = float(size)
    for unit in ('B', 'kB', 'MB', 'GB'):
        if value < 1000 or unit == 'GB':
            return f'{value:.0f} {unit}' if unit in ('B', 'kB', 'MB') else f'{value:.2f} {unit}'
        value /= 1000
    raise AssertionError


__all__ = [
    'CONVERTERS',
    'DownloadError',
    'FetchPlan',
    'FetchProgress',
    'KnownModel',
    'PlannedFile',
    'fetch',
    'list_models',
    'model_card',
    'plan_fetch',
]
