"""A model's settings as JSON: what may stand in them, and nothing that runs code or leaves the folder.

Source of the danger: mmengine's registries import whatever a dotted ``type`` names, mmcv's ``batched_nms``
evaluates its ``type`` as Python, ``init_cfg`` and hub names open sockets.
Reading order: encode (to JSON), check (what a folder says), decode (to settings with real paths).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

REFERENCE = re.compile(r'(folder|asset|model):(.+)')

# Classes of the hosts that a folder may name; those of ovd are all allowed.
_CLASSES = """
    DetDataPreprocessor SegDataPreProcessor
    ResNet ResNetV1c ResNetV1d ResNeXt Res2Net RegNet HRNet SwinTransformer ConvNeXt MixVisionTransformer
    FPN FPN_DropBlock PAFPN ChannelMapper Feature2Pyramid MultiLevelNeck
    RPNHead GARPNHead FCNMaskHead FCNHead UPerHead PSPHead ASPPHead DepthwiseSeparableASPPHead
    SingleRoIExtractor GenericRoIExtractor RoIAlign
    AnchorGenerator DeltaXYWHBBoxCoder TBLRBBoxCoder MlvlPointGenerator BboxOverlaps2D
    MaxIoUAssigner ATSSAssigner RandomSampler PseudoSampler CombinedSampler
    CrossEntropyLoss FocalLoss L1Loss SmoothL1Loss GIoULoss DIoULoss CIoULoss IoULoss DiceLoss
    BN BN2d SyncBN GN LN LN2d IN IN2d Conv Conv2d ConvAWS DCN DCNv2 Linear NormedLinear
    ReLU LeakyReLU GELU SiLU Swish Sigmoid HSigmoid HSwish DyReLU PReLU ELU Tanh DropPath Dropout
    nms soft_nms nearest bilinear deconv carafe absolute clip bert
    LoadImageFromFile LoadImageFromNDArray Resize FixScaleResize RandomResize CenterCrop Normalize Pad
    PackDetInputs PackSegInputs ImageToTensor
"""
_REFUSED = """
    init_cfg custom_imports _scope_ _base_ _delete_ checkpoint_path pretrained_cfg pretrained_cfg_overlay
    cache_dir bpe_path trust_remote_code auto_map attn_implementation quantization_config
    backend_args file_client_args
"""
HOST_CLASSES = frozenset(_CLASSES.split())
SCOPES = ('mmdet', 'mmseg')

_TUPLE = '__tuple__'
_TYPE = re.compile(r'(?:(ovd|mmdet|mmseg|mmcv|mmengine)\.)?([A-Za-z]\w*)')
_REFUSED_KEYS = frozenset(_REFUSED.split())
# Keys whose text is a file or folder, unless it is a bare name; there a path must be a reference.
PATH_KEYS = ('model', 'pretrained', 'clip', 'embeddings', 'offset', 'thresholds', 'tokenizer', 'vocabulary')
_FILE_ENDING = re.compile(r'\.(json|txt|safetensors|pth|pt|bin|ckpt|npy|npz|yaml|yml|py)$', re.IGNORECASE)
_ELSEWHERE = re.compile(
    r'^(/|~|\\|[A-Za-z]:[\\/])|(^|[\\/])\.\.([\\/]|$)|://|^(hf-hub|hf_hub|local-dir|timm|torchvision|open-mmlab):'
)


class UnsafeModelFolderError(ValueError):
    """A model folder that asks for more than data."""


def encode(value: Any, replace: Callable[[str, str], str], where: str = 'model') -> Any:
    """Settings as JSON values; tuples are marked, initialisation is left out.

    Args:
        replace: from the key and the text of a value to the text that is written, see ``REFERENCE``.
        where: path of the value, for messages.
    Raises:
        ValueError: a value that JSON does not have; the message names its key.
    """
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise ValueError(f'{where} has the key {wrong[0]!r}; a model folder holds text keys only')
        return {
            key: encode(item, replace, f'{where}.{key}') for key, item in value.items() if key != 'init_cfg'
        }
    if isinstance(value, tuple):
        return {_TUPLE: [encode(item, replace, f'{where}[{index}]') for index, item in enumerate(value)]}
    if isinstance(value, list):
        return [encode(item, replace, f'{where}[{index}]') for index, item in enumerate(value)]
    if isinstance(value, str):
        return replace(where, value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ValueError(f'{where} is a {type(value).__name__}; a model folder holds plain values only')


def decode(value: Any, resolve: Callable[[str], str]) -> Any:
    """Checked JSON as settings: marked tuples restored, references as paths by ``resolve``."""
    if isinstance(value, Mapping):
        if set(value) == {_TUPLE}:
            return tuple(decode(item, resolve) for item in value[_TUPLE])
        return {key: decode(item, resolve) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item, resolve) for item in value]
    return resolve(value) if isinstance(value, str) and REFERENCE.fullmatch(value) else value


def check(value: Any, registered: Callable[[str], bool], allow: Iterable[str] = (), where: str = '') -> None:
    """Refuse settings that could run code, open a socket, or read beyond the folder.

    Args:
        registered: whether a class name of ovd is one of its own.
        allow: further class names, as the config spells them.
    Raises:
        UnsafeModelFolderError: the message names key and value.
    """
    allowed = frozenset(allow)
    stack: list[tuple[str, str, Any]] = [(where, '', value)]
    while stack:
        path, key, item = stack.pop()
        if key == 'pretrained' and item and not isinstance(item, str):
            raise UnsafeModelFolderError(f'{path} is {item!r}, which would fetch weights')
        if isinstance(item, Mapping):
            for inner, child in item.items():
                if inner in _REFUSED_KEYS or (inner.startswith('_') and inner != _TUPLE):
                    raise UnsafeModelFolderError(f'{path}.{inner} is not allowed in a model folder')
                if inner == 'type':
                    _check_type(f'{path}.type', child, registered, allowed)
                stack.append((f'{path}.{inner}', inner, child))
        elif isinstance(item, list):
            stack += [(f'{path}[{index}]', '', child) for index, child in enumerate(item)]
        elif isinstance(item, str):
            _check_text(path, key, item)


def _check_type(path: str, name: Any, registered: Callable[[str], bool], allowed: frozenset[str]) -> None:
    match = _TYPE.fullmatch(name) if isinstance(name, str) else None
    if match is not None:
        if name in allowed:
            return
        known = registered(match[2]) if match[1] == 'ovd' else match[2] in HOST_CLASSES
        if known:
            return
    raise UnsafeModelFolderError(
        f'{path} is {name!r}, which is not on the list of classes that a model folder may name; allow=[...] '
        f'adds to the list'
    )


def _check_text(path: str, key: str, text: str) -> None:
    if REFERENCE.fullmatch(text):
        inner = text.partition(':')[2]
        if _ELSEWHERE.search(inner) or '\\' in inner:
            raise UnsafeModelFolderError(f'{path} is {text!r}, which leads out of the folder')
        return
    if _ELSEWHERE.search(text):
        raise UnsafeModelFolderError(f'{path} is {text!r}, a place outside the folder')
    if key == 'pretrained' and not re.fullmatch(r'random:\d+', text):
        raise UnsafeModelFolderError(f'{path} is {text!r}, which would be fetched or read from elsewhere')
    if key in PATH_KEYS and (set(text) & set('/\\') or _FILE_ENDING.search(text)):
        raise UnsafeModelFolderError(f'{path} is {text!r}, a file outside the folder')
