"""The image tower of a CLIP: pixels to vectors of the joint space."""

import torch
from torch import Tensor, nn

from .loading import DTYPES, PathLike, load_clip


class ImageEncoder(nn.Module):
    """Frozen image tower of a CLIP; stays in eval mode.

    Args:
        model, pretrained, dtype: see ``load_clip``.
        channels_last: lay out weights and pixels channels-last, faster for convolutional towers on CPU.
    """

    mean_pixel: Tensor
    std_pixel: Tensor

    def __init__(
        self,
        model: PathLike,
        pretrained: PathLike | None = None,
        dtype: str = 'float32',
        channels_last: bool = False,
    ):
        super().__init__()
        clip = load_clip(model, pretrained, dtype)
        self.visual = clip.model.get_submodule('visual')
        self.fingerprint = clip.fingerprint
        self.embed_dim = clip.embed_dim
        self.image_size = clip.image_size
        self.mean = clip.mean
        self.std = clip.std
        self.dtype = DTYPES[dtype]
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            self.visual.to(memory_format=torch.channels_last)
        for name, values in (('mean_pixel', clip.mean), ('std_pixel', clip.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1) * 255, persistent=False)

    def normalize(self, pixels: Tensor) -> Tensor:
        """RGB pixels [N, 3, S, S] in 0 .. 255, uint8 or float -> what ``encode`` takes."""
        pixels = pixels.to(self.mean_pixel.device, torch.float32)
        return ((pixels - self.mean_pixel) / self.std_pixel).to(self.dtype)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [N, 3, S, S] -> [N, D], not normalised, float32; N may be 0.

        Raises:
            ValueError: another shape than [N, 3, image_size, image_size].
        """
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, self.image_size, self.image_size):
            raise ValueError(
                f'expected pixels [N, 3, {self.image_size}, {self.image_size}], got {list(pixels.shape)}'
            )
        pixels = pixels.to(self.mean_pixel.device, self.dtype).contiguous(memory_format=self.memory_format)
        if not len(pixels):
            return torch.zeros(0, self.embed_dim, device=pixels.device)
        with torch.autocast(pixels.device.type, enabled=False):
            features = self.visual(pixels)
        return (features[0] if isinstance(features, tuple) else features).float()

    def train(self, mode: bool = True) -> 'ImageEncoder':
        """Stay in eval mode: the tower is frozen, whatever the model around it does."""
        return super().train(False)
