"""Stored tensors of the GLIP reference and its keys in our names."""

from safetensors.torch import load_file
from torch import Tensor, nn

from tests.helpers import shared_path

FUSE = {
    'attn.v_proj': 'attention.query',
    'attn.l_proj': 'attention.key',
    'attn.values_v_proj': 'attention.image_value',
    'attn.values_l_proj': 'attention.text_value',
    'attn.out_v_proj': 'attention.image_out',
    'attn.out_l_proj': 'attention.text_out',
    'layer_norm_v': 'norm_image',
    'layer_norm_l': 'norm_text',
    'gamma_v': 'scale_image',
    'gamma_l': 'scale_text',
}
TEXT_LAYER = {
    'attention.self.': '',
    'attention.output.dense': 'attention_out',
    'attention.output.LayerNorm': 'norm_attention',
    'intermediate.dense': 'expand',
    'output.dense': 'contract',
    'output.LayerNorm': 'norm_out',
}
DYHEAD = {
    'dyconvs.0.bn': 'from_coarser.norm',
    'dyconvs.1.bn': 'from_same.norm',
    'dyconvs.2.bn': 'from_finer.norm',
    'dyconvs.0': 'from_coarser',
    'dyconvs.1': 'from_same',
    'dyconvs.2': 'from_finer',
    'attnconv.1': 'weigh',
    'relu.fc.0': 'bend.reduce',
    'relu.fc.2': 'bend.expand',
    'offset': 'shifts',
}


def golden(name: str) -> dict[str, Tensor]:
    """The tensors of one file."""
    return load_file(shared_path(f'goldens/glip/{name}.safetensors'))


def levels(tensors: dict[str, Tensor], prefix: str) -> list[Tensor]:
    """The five maps with keys ``prefix`` 0 .. 4."""
    return [tensors[f'{prefix}{level}'] for level in range(5)]


def load(module: nn.Module, tensors: dict[str, Tensor], names: dict[str, str], prefix: str = 'sd.') -> None:
    """The stored parameters in a module, none left over."""
    renamed = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            key = key.removeprefix(prefix)
            for old, new in names.items():
                if key.startswith(old):
                    key = new + key.removeprefix(old)
                    break
            renamed[key] = tensor
    module.load_state_dict(renamed)
