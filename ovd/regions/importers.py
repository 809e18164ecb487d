"""Import the region embeddings of other projects into a RegionStore; files are read weights-only.

DetPro: a tensor [n, D] per image (``000000000139.pth`` in a folder or zip); row i belongs to row i of the
proposal pickle.
OADP: a dict per image with ``embeddings`` [n, D], ``bboxes`` [n, 4] and ``objectness`` [n], all fp16.
"""

import io
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checkpoints.reading import read_checkpoint
from ..files import sha256_json
from .crops import CropPolicy
from .proposal_files import ProposalTable
from .store import RegionStoreWriter

DETPRO_CROPS = CropPolicy(mode='center_crop', outside='black', rounding='detpro').to_dict()
OADP_CROPS = {'mode': 'oadp', 'scales': [1.0]}


class TensorFiles:
    """The ``.pth`` files of a folder or zip, by image id (the digits of the file name)."""

    def __init__(self, source: str | os.PathLike[str]):
        self.source = Path(source)
        self._archive = None if self.source.is_dir() else self._open_archive()
        names = (
            [str(path) for path in self.source.rglob('*.pth')]
            if self._archive is None
            else self._archive.namelist()
        )
        self._names: dict[int, str] = {}
        for name in sorted(names):
            stem = Path(name).stem
            if not name.endswith('.pth') or not stem.isdigit():
                continue
            if int(stem) in self._names:
                raise ValueError(f'{self.source} has two files of image {int(stem)}')
            self._names[int(stem)] = name
        if not self._names:
            raise ValueError(f'{self.source} holds no files such as 000000000139.pth')

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._names

    def load(self, image_id: int) -> Any:
        """Read the file of an image, weights-only.

        Raises:
            KeyError: the image has no file.
            ValueError: the file is damaged, or contains objects other than tensors and plain values.
        """
        name = self._names[image_id]
        if self._archive is None:
            return read_checkpoint(name)
        stream = io.BytesIO(self._archive.read(name))
        stream.name = f'{self.source}: {name}'
        return read_checkpoint(stream)

    def _open_archive(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.source)
        except zipfile.BadZipFile:
            raise ValueError(f'{self.source} is neither a folder nor a zip file') from None


def import_detpro(
    folder: str | os.PathLike[str],
    embeddings: str | os.PathLike[str],
    proposals: ProposalTable,
    image_ids: Sequence[int],
    clip_fingerprint: str,
    on_image: Callable[[], Any] | None = None,
) -> dict[str, Any] | None:
    """Import DetPro's embeddings and the proposals they were computed from.

    Args:
        folder: the new store (an interrupted import is continued).
        embeddings: folder or zip of the tensors.
        proposals: content of the pickle.
        image_ids: images of the data set, in its order; at least one.
        clip_fingerprint: of the CLIP that computed the embeddings (OpenAI's ViT-B/32).
        on_image: called after each image.
    Returns:
        the manifest of the store.
    Raises:
        KeyError: an image has no file or no proposals.
        ValueError: the numbers of embeddings and proposals of an image differ; a file of unknown content.
    """
    files = TensorFiles(embeddings)

    def rows(image_id: int) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores = (torch.from_numpy(array.copy()) for array in proposals.rows(image_id))
        vectors = _matrix(files.load(image_id), image_id)
        if len(vectors) != len(boxes):
            raise ValueError(
                f'image {image_id} has {len(vectors)} embeddings but {len(boxes)} proposals in '
                f'{proposals.source}: that file belongs to other embeddings or another order of images'
            )
        return boxes, scores, vectors

    source = {'source': 'detpro', 'sha256': proposals.sha256}
    most = max(proposals.count(image_id) for image_id in image_ids)
    return _import(folder, image_ids, rows, most, source, DETPRO_CROPS, clip_fingerprint, on_image)


def import_oadp(
    folder: str | os.PathLike[str],
    embeddings: str | os.PathLike[str],
    image_ids: Sequence[int],
    clip_fingerprint: str,
    on_image: Callable[[], Any] | None = None,
) -> dict[str, Any] | None:
    """Import OADP's files; see :func:`import_detpro`.

    Their boxes are fp16, that is, rounded to 0.5 pixel above 512 and to 1 pixel above 1024.
    """
    files = TensorFiles(embeddings)

    def rows(image_id: int) -> tuple[Tensor, Tensor, Tensor]:
        content = files.load(image_id)
        keys = ('bboxes', 'objectness', 'embeddings')
        if not isinstance(content, Mapping) or not content.keys() >= set(keys):
            raise ValueError(f'image {image_id}: expected a dict with {", ".join(keys)}, got {content!r:.80}')
        return (
            content['bboxes'].float(),
            content['objectness'].float(),
            _matrix(content['embeddings'], image_id),
        )

    counts = {image_id: len(rows(image_id)[1]) for image_id in image_ids}
    source = {
        'source': 'oadp',
        'counts_sha256': sha256_json({str(key): value for key, value in counts.items()}),
    }
    most = max(counts.values())
    return _import(folder, image_ids, rows, most, source, OADP_CROPS, clip_fingerprint, on_image)


def _import(
    folder: str | os.PathLike[str],
    image_ids: Sequence[int],
    rows: Callable[[int], tuple[Tensor, Tensor, Tensor]],
    max_regions: int,
    proposals: dict[str, Any],
    crops: dict[str, Any],
    clip_fingerprint: str,
    on_image: Callable[[], Any] | None,
) -> dict[str, Any] | None:
    header = {
        'clip_fingerprint': clip_fingerprint,
        'embed_dim': rows(image_ids[0])[2].shape[1],
        'crops': crops,
        'crops_hash': sha256_json(crops)[:16],
        'proposals': proposals,
        'max_regions': max_regions,
    }
    writer = RegionStoreWriter(folder, header)
    for image_id in writer.pending(image_ids):
        boxes, scores, vectors = rows(image_id)
        writer.add(image_id, boxes, scores, F.normalize(vectors, dim=1))
        if on_image is not None:
            on_image()
    return writer.close()


def _matrix(value: Any, image_id: int) -> Tensor:
    """Convert a stored tensor or array to float32 [n, D]."""
    if isinstance(value, (str, bytes, Mapping)) or torch.as_tensor(value).dim() != 2:
        raise ValueError(f'image {image_id}: expected embeddings [n, D], got {value!r:.80}')
    return torch.as_tensor(value).float()
