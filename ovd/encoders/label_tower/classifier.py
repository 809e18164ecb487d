"""An image classifier of timm's, with weights from a file."""

import os
from collections.abc import Mapping, Sequence

import timm
import torch
from torch import Tensor, nn

from ...checkpoints.loading import load_into, load_tensors
from ..loading import PathLike
from .photos_extra import classifier_file

_RANDOM = 'random:'


class Classifier(nn.Module):
    """Images to logits.

    Args:
        model: its name in timm.
        pretrained: a weights file, read weights-only, or 'random:SEED'; by default the file of the extra
            ``ovd[photos]``. A file in another layout whose tensors agree with timm's one by one, in order,
            shape and kind, is read in that order.
        mean, std: of RGB values in [0, 1]; by default those that timm knows.
        image_size: side of the square input, by default the one that timm knows.
    Raises:
        ValueError: no model of timm, weights that do not fit.
        FileNotFoundError: no such file.
    """

    def __init__(
        self,
        model: str = 'tf_efficientnet_lite0',
        pretrained: PathLike | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        if model not in timm.list_models():
            raise ValueError(f'timm has no classifier {model!r}')
        source = classifier_file() if pretrained is None else os.fspath(pretrained)
        with torch.random.fork_rng(devices=[]):
            if source.startswith(_RANDOM):
                torch.manual_seed(int(source.removeprefix(_RANDOM)))
            self.net = timm.create_model(model, pretrained=False)
        if not source.startswith(_RANDOM):
            tensors = in_order_of(self.net, load_tensors(source))
            load_into(self.net, tensors, source=source)
        known = self.net.default_cfg
        self.num_outputs = int(self.net.num_classes)
        self.image_size = int(known['input_size'][1]) if image_size is None else image_size
        self.mean: tuple[float, ...] = tuple(known['mean'] if mean is None else mean)
        self.std: tuple[float, ...] = tuple(known['std'] if std is None else std)
        for name, values in (('mean_pixel', self.mean), ('std_pixel', self.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1) * 255, persistent=False)
        self.mean_pixel: Tensor
        self.std_pixel: Tensor
        self.net.to(memory_format=torch.channels_last)

    def normalize(self, pixels: Tensor) -> Tensor:
        """RGB pixels [N, 3, S, S] in 0 .. 255 -> what ``forward`` takes."""
        return (pixels.to(self.mean_pixel.device, torch.float32) - self.mean_pixel) / self.std_pixel

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [N, 3, S, S] -> logits [N, L]."""
        logits: Tensor = self.net(pixels.contiguous(memory_format=torch.channels_last))
        return logits


def in_order_of(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the keys of a module, where they fit it one by one; else as they are.

    They fit if there are as many, of the same shapes, and keys end alike ('weight', 'running_mean').
    """
    wanted = module.state_dict()
    pairs = list(zip(wanted.items(), tensors.items()))
    fits = len(wanted) == len(tensors) and all(
        ours.shape == theirs.shape and key.rpartition('.')[2] == name.rpartition('.')[2]
        for (key, ours), (name, theirs) in pairs
    )
    return {key: tensor for (key, _), (_, tensor) in pairs} if fits else dict(tensors)
