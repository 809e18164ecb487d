"""Model folders: weights, settings, words and their hashes in one place, without any code.

    model.safetensors   weights of the whole model
    config.json         model section, preprocessing, post-processing; what it refers to, by hash
    vocabulary.json     the default words
    files/              text encoder and whatever else the settings name
    MODEL_CARD.md       origin, licence, protocol, published figures
    hashes.json         size and SHA-256 of all of these

A text in the settings may refer to a file of the folder ('folder:files/x'), to one of the package
('asset:x') or to another model under ``$OVD_HOME`` ('model:name').
Reading order: write_model_folder, read_model_folder, find_model_folder, verify_hashes.
"""

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import model_home, sha256_file, sha256_json, write_json
from ...text.vocabulary import Vocabulary
from .trusted_config import PATH_KEYS, REFERENCE, SCOPES, UnsafeModelFolderError, check, decode, encode

if TYPE_CHECKING:
    from torch import nn

PathLike = str | os.PathLike[str]

WEIGHTS, CONFIG, WORDS, CARD, HASHES = (
    'model.safetensors',
    'config.json',
    'vocabulary.json',
    'MODEL_CARD.md',
    'hashes.json',
)
FORMAT, VERSION = 'ovd.model', 1
_REQUIRED = (WEIGHTS, CONFIG, CARD)
_ASSETS = Path(__file__).resolve().parents[2] / 'assets'
_MAX_JSON_BYTES = 64 << 20
_FILE_SUFFIXES = ('.json', '.txt', '.safetensors', '.pth', '.pt', '.bin', '.model')
_TOWER_KEYS = ('model', 'clip')
_WEIGHTS_SUFFIXES = ('.safetensors', '.pth', '.pt', '.bin', '.h5', '.msgpack', '.ot')


@dataclass(frozen=True)
class ModelFolder:
    """What a model folder holds, checked; the weights are not read yet.

    Attributes:
        path: of the folder.
        name: of the model.
        default_scope: 'mmdet' or 'mmseg'.
        model: arguments of the model, with real paths.
        pipeline: steps of the preprocessing, which begin with loading the image.
        vocabulary: the default words, None for a model without.
        text_encoder: ``reference`` and ``fingerprint`` of what encodes the words.
        answering: how scores become answers, see ``AnswerOptions.from_dict``; None where nothing is said.
    """

    path: Path
    name: str
    default_scope: str
    model: dict[str, Any]
    pipeline: list[dict[str, Any]]
    vocabulary: Vocabulary | None
    text_encoder: dict[str, Any]
    answering: dict[str, Any] | None

    @property
    def weights(self) -> Path:
        """The file with the weights."""
        return self.path / WEIGHTS


@dataclass
class ModelCard:
    """What a reader should know of a model; unknown entries are left out of the text.

    Attributes:
        title: a line.
        origin: who made the weights and where they come from.
        licence: of the weights.
        protocol: how the figures were measured.
        figures: name -> published value.
        notes: further lines.
    """

    title: str = ''
    origin: str = ''
    licence: str = ''
    protocol: str = ''
    figures: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def text(self, name: str) -> str:
        """Markdown."""
        rows = [
            ('Origin', self.origin),
            ('Licence', self.licence or 'not stated'),
            ('Protocol', self.protocol),
        ]
        parts = [f'# {name}', self.title, *(f'**{key}.** {value}' for key, value in rows if value)]
        if self.figures:
            table = [f'| {key} | {value} |' for key, value in self.figures.items()]
            parts.append('\n'.join(['| published | value |', '|---|---|', *table]))
        parts += [f'- {note}' for note in self.notes]
        return '\n\n'.join(part for part in parts if part) + '\n'


def write_model_folder(
    out: PathLike,
    model: 'nn.Module',
    config: Mapping[str, Any],
    pipeline: Iterable[Mapping[str, Any]],
    vocabulary: Vocabulary | None = None,
    fingerprint: str | None = None,
    answering: Mapping[str, Any] | None = None,
    card: ModelCard | None = None,
    replace: bool = False,
    name: str | None = None,
) -> Path:
    """Write a model folder; it appears whole or not at all.

    Args:
        out: folder to make.
        model: with the weights to store.
        config: with ``model``, ``default_scope`` and, it may be, ``data_preprocessor``; files that it names
            are copied, except those of the package and of models under ``$OVD_HOME``, which are referred to.
        pipeline: preprocessing of an image.
        vocabulary: default words.
        fingerprint: of the text encoder.
        answering: see ``ModelFolder``.
        card: for ``MODEL_CARD.md``.
        replace: put it in place of a model folder that is there.
        name: of the model, by default that of the folder.
    Returns:
        the folder.
    Raises:
        FileExistsError: there is something of that name.
        FileNotFoundError: the config names a file that does not exist.
        ValueError: a value that JSON does not have.
    """
    from ...checkpoints.writing import save_tensors

    out = Path(out)
    if out.exists() and not (replace and (out / HASHES).is_file()):
        raise FileExistsError(f'{out} exists already; a model folder is written anew')
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f'.{out.name}.', suffix='.tmp'))
    try:
        files = _Files(folder)
        section = copy.deepcopy(dict(config['model']))
        if config.get('data_preprocessor') is not None:
            section.setdefault('data_preprocessor', config['data_preprocessor'])
        content = {
            'format': FORMAT,
            'version': VERSION,
            'name': name or out.name,
            'default_scope': config.get('default_scope', 'mmdet'),
            'model': encode(_prepared(section, vocabulary), files.reference),
            'pipeline': encode(_without_backends(list(pipeline)), files.reference, 'pipeline'),
            'text_encoder': {'reference': _tower(section, files), 'fingerprint': fingerprint},
            'references': files.hashes(),
        }
        if answering is not None:
            content['answering'] = dict(answering)
        if vocabulary is not None:
            write_json(folder / WORDS, vocabulary.to_dict())
        save_tensors(folder / WEIGHTS, model.state_dict(), {'format': 'pt'})
        _write_json(folder / CONFIG, content)
        (folder / CARD).write_text((card or ModelCard()).text(name or out.name), encoding='utf-8')
        write_hashes(folder)
        folder.chmod(0o755)
        place(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return out


def place(folder: Path, out: Path) -> None:
    """Move a finished folder to its name, in place of one that is there."""
    if out.exists():
        old = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f'.{out.name}.', suffix='.old'))
        out.rename(old / out.name)
        folder.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        folder.rename(out)


def write_hashes(folder: Path) -> None:
    """Write ``hashes.json`` over all other files of a folder."""
    files = sorted(path for path in folder.rglob('*') if path.is_file() and path.name != HASHES)
    table = {
        path.relative_to(folder).as_posix(): {'size': path.stat().st_size, 'sha256': sha256_file(path)}
        for path in files
    }
    write_json(folder / HASHES, {'format': f'{FORMAT}.hashes', 'files': table})


def verify_hashes(folder: PathLike) -> dict[str, str]:
    """Check every file of a model folder against ``hashes.json``.

    Returns:
        file -> SHA-256.
    Raises:
        FileNotFoundError: no such folder, or a listed file is missing.
        ValueError: a file is not the one that the list tells of; the message names it.
    """
    folder = Path(folder)
    if not (folder / HASHES).is_file():
        raise FileNotFoundError(f'{folder} is no model folder: it has no {HASHES}')
    files = _read_json(folder / HASHES).get('files')
    if not isinstance(files, dict):
        raise ValueError(f'{folder / HASHES} has no list of files')
    hashes = {}
    for name, entry in files.items():
        path = _inside(folder, name)
        expected = entry.get('sha256') if isinstance(entry, dict) else None
        if not path.is_file():
            raise FileNotFoundError(f'{folder}: {name} is missing')
        if not isinstance(expected, str) or sha256_file(path) != expected:
            raise ValueError(
                f'{folder}: {name} is not the file that {HASHES} tells of; fetch or pack it anew'
            )
        hashes[name] = expected
    return hashes


def read_model_folder(folder: PathLike, allow: Iterable[str] = ()) -> ModelFolder:
    """Read and check a model folder; nothing that it brings is executed, nothing is fetched.

    Args:
        allow: further class names that its settings may hold, see ``HOST_CLASSES``.
    Raises:
        FileNotFoundError: no such folder, or a file of it or a model that it refers to is missing.
        ValueError: a file that does not match its hash, or is damaged.
        UnsafeModelFolderError: settings that ask for more than data.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'model folder {folder} does not exist')
    hashes = verify_hashes(folder)
    missing = [name for name in _REQUIRED if name not in hashes]
    if missing:
        raise FileNotFoundError(
            f'{folder} is no model folder: {HASHES} does not list {missing[0]}; a text or image encoder is '
            f'named in a config instead'
        )
    content = _read_json(folder / CONFIG)
    source = str(folder / CONFIG)
    if content.get('format') != FORMAT or content.get('version') != VERSION:
        raise ValueError(
            f'{source} has format {content.get("format")!r} {content.get("version")!r}, '
            f'expected {FORMAT!r} {VERSION}'
        )
    model, pipeline, scope = (content.get(key) for key in ('model', 'pipeline', 'default_scope'))
    if not isinstance(model, dict) or not isinstance(pipeline, list) or scope not in SCOPES:
        raise ValueError(f'{source} needs a model, a pipeline and a default_scope of {SCOPES}')
    for where, value in (('model', model), ('pipeline', pipeline)):
        try:
            check(value, is_ours, allow, where)
        except UnsafeModelFolderError as error:
            raise UnsafeModelFolderError(f'{source}: {error}') from None
    _check_references(content.get('references') or {}, source)

    def resolve(text: str) -> str:
        kind, _, rest = text.partition(':')
        if kind == 'folder' and rest not in hashes and not any(n.startswith(f'{rest}/') for n in hashes):
            raise UnsafeModelFolderError(f'{source} refers to {text!r}, which {HASHES} does not list')
        return str(_target(kind, rest, folder))

    vocabulary = Vocabulary.parse(folder / WORDS) if WORDS in hashes else None
    tower, answering = content.get('text_encoder') or {}, content.get('answering')
    if not isinstance(tower, dict) or not isinstance(answering, dict | None):
        raise ValueError(f'{source}: text_encoder and answering are objects')
    return ModelFolder(
        path=folder,
        name=str(content.get('name') or folder.name),
        default_scope=scope,
        model=decode(model, resolve),
        pipeline=decode(pipeline, resolve),
        vocabulary=vocabulary,
        text_encoder=tower,
        answering=answering,
    )


def find_model_folder(name: PathLike) -> Path:
    """The folder of a model, given by path or by its name under ``$OVD_HOME``.

    Raises:
        FileNotFoundError: there is none; the message says the command that fetches it, or similar names.
    """
    if Path(name).is_dir():
        return Path(name)
    text = os.fspath(name)
    home = model_home()
    if is_model_name(text) and (home / text / HASHES).is_file():
        return home / text
    from ...catalogue.entries import names, similar

    if text in names():
        raise FileNotFoundError(f'model {text!r} is not on this disk: ovd fetch {text}')
    close = similar(text)
    hint = f'; did you mean {", ".join(close)}?' if close else '; `ovd models` lists the known ones'
    raise FileNotFoundError(f'{text!r} is neither a model folder nor the name of a model{hint}')


def is_model_name(name: str) -> bool:
    """Whether a text can name a model: letters, digits, dots, dashes."""
    return bool(name) and not name.startswith('.') and all(c.isalnum() or c in '._-' for c in name)


def is_ours(name: str) -> bool:
    """Whether a class of that name is registered by ovd itself."""
    from ...registry import MODELS, TASK_UTILS, TRANSFORMS

    for registry in (MODELS, TASK_UTILS, TRANSFORMS):
        registry.import_from_location()
        found = registry.module_dict.get(name)
        if found is not None:
            return str(getattr(found, '__module__', '')).startswith('ovd.')
    return False


class _Files:
    """Copies what settings name into a model folder, once each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, str] = {f'folder:{WORDS}': f'folder:{WORDS}'}

    def reference(self, where: str, text: str) -> str:
        """The text itself, or the reference to the file or folder that it names."""
        if text not in self._known:
            found = _find_named(where.rpartition('.')[2], text)
            if found is None:
                return text
            if not found.exists():
                raise FileNotFoundError(f'{where} names {text}, which does not exist')
            self._known[text] = self._placed(found)
        return self._known[text]

    def hashes(self) -> dict[str, str]:
        """Hash of what is referred to outside the folder."""
        outside = (r for r in self._known.values() if not r.startswith('folder:'))
        split = {text: text.partition(':') for text in sorted(set(outside))}
        return {text: tree_hash(_target(kind, rest, self._folder)) for text, (kind, _, rest) in split.items()}

    def _placed(self, path: Path) -> str:
        real = path.resolve()
        if real.is_relative_to(_ASSETS):
            return f'asset:{real.relative_to(_ASSETS).as_posix()}'
        home = model_home().resolve()
        if real.parent == home and (real / HASHES).is_file():
            return f'model:{real.name}'
        target = f'files/{path.stem}-{tree_hash(real)[:8]}{path.suffix if real.is_file() else ""}'
        place = self._folder / target
        if real.is_dir():
            _copy_folder(real, place)
        elif not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(real, place)
        return f'folder:{target}'


def _find_named(key: str, text: str) -> Path | None:
    """What a text among the settings names: a path, a folder of the package, or a model; None for none."""
    path = Path(text)
    if set(text) & set('/\\') or path.suffix in _FILE_SUFFIXES:
        is_path = path.exists() or (key in PATH_KEYS and not _is_remote(text))
        return path if is_path else None
    for root in (_ASSETS, model_home()) if key in _TOWER_KEYS and is_model_name(text) else ():
        if (root / text).is_dir():
            return root / text
    return None


def _is_remote(text: str) -> bool:
    return text.startswith(('hf-hub:', 'http:', 'https:'))


def _copy_folder(source: Path, target: Path) -> None:
    """The files of a text encoder; a BERT's weights, which are in the model's, stay behind."""
    is_bert = _is_bert(source)
    for path in sorted(source.rglob('*')):
        if path.is_file() and not (is_bert and path.suffix in _WEIGHTS_SUFFIXES):
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def _is_bert(folder: Path) -> bool:
    config = folder / 'config.json'
    try:
        return config.is_file() and json.loads(config.read_text(encoding='utf-8')).get('model_type') == 'bert'
    except (ValueError, AttributeError):
        return False


def tree_hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files of a folder."""
    if path.is_file():
        return sha256_file(path)
    files = sorted(file for file in path.rglob('*') if file.is_file())
    return sha256_json({file.relative_to(path).as_posix(): sha256_file(file) for file in files})


def _prepared(section: Mapping[str, Any], vocabulary: Vocabulary | None) -> dict[str, Any]:
    """The model's section with its words in the folder, and with nothing that fetches weights."""
    text = section.get('text')
    prepared = dict(section)
    if isinstance(text, Mapping):
        text = dict(text)
        fixed = text.get('wordings') or text.get('offset')  # these go with the words of the config
        if vocabulary is not None and not fixed:
            text['vocabulary'] = f'folder:{WORDS}'
        encoder = text.get('encoder')
        if isinstance(encoder, Mapping) and encoder.get('pretrained') is True:
            text['encoder'] = {**encoder, 'pretrained': False}
        prepared['text'] = text
    return _without_backends(prepared)


def _without_backends(value: Any) -> Any:
    """Settings without the empty arguments of storage backends."""
    if isinstance(value, Mapping):
        return {
            key: _without_backends(item)
            for key, item in value.items()
            if not (key in ('backend_args', 'file_client_args') and item is None)
        }
    if isinstance(value, list | tuple):
        return type(value)(_without_backends(item) for item in value)
    return value


def _tower(section: Mapping[str, Any], files: _Files) -> str | None:
    """The reference to what encodes the words; None where the model's own weights do."""
    encoder = (section.get('text') or {}).get('encoder')
    name = encoder.get('model') if isinstance(encoder, Mapping) else None
    return files.reference('text.encoder.model', name) if isinstance(name, str) else None


def _check_references(references: Any, source: str) -> None:
    """Refuse what a model folder refers to if it is absent, or not what it was."""
    if not isinstance(references, dict):
        raise ValueError(f'{source}: references is {references!r}, expected an object')
    for text, expected in references.items():
        match = REFERENCE.fullmatch(text)
        if match is None or match[1] == 'folder':
            raise UnsafeModelFolderError(f'{source}: references has {text!r}, expected asset: or model:')
        path = _target(match[1], match[2], Path())
        if not path.exists():
            command = f': ovd fetch {match[2]}' if match[1] == 'model' else ''
            raise FileNotFoundError(f'{source} refers to {text}, which is not on this disk{command}')
        if tree_hash(path) != expected:
            raise ValueError(
                f'{source} refers to {text}, which is not the one that the model was packed with'
            )


def _target(kind: str, rest: str, folder: Path) -> Path:
    """The path of a reference, inside the root of its kind."""
    if kind == 'model':
        if not is_model_name(rest):
            raise UnsafeModelFolderError(f'{kind}:{rest} names no model')
        return model_home() / rest
    return _inside(folder if kind == 'folder' else _ASSETS, rest)


def _inside(root: Path, name: str) -> Path:
    """A path below ``root``; links that lead elsewhere are refused."""
    path = root / name
    if not isinstance(name, str) or not path.resolve().is_relative_to(root.resolve()):
        raise UnsafeModelFolderError(f'{name!r} leads out of {root}')
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f'larger than {_MAX_JSON_BYTES >> 20} MiB')
        content = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} cannot be read: {error}') from None
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds a {type(content).__name__}, expected an object')
    return content


def _write_json(path: Path, value: Any) -> None:
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f'{path.name}: {error}; a model folder holds finite numbers only') from None
    path.write_text(text + '\n', encoding='utf-8')
