"""GroupViT and transformers' model of the same weights, for a comparison of their speed."""

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from timing import Figure, interleave, paired_ratio, written

WORDS = 20
TOKENS = 77


def measure_groupvit(args: argparse.Namespace) -> list[Figure]:
    """ViT-S/16 as released: images to groups in the joint space, and images with 20 words to maps."""
    batch = 8 if args.full else 1
    figures = []
    for side in (224, 448):
        ours, peer = build_pair(side, args.device)
        images = torch.randn(batch, 3, side, side, device=args.device)
        calls = {'ours': inference(encode_ours, ours, images), 'peer': inference(encode_peer, peer, images)}
        figures.append(figure(f'groups of {batch} x {side} x {side}', calls, args))
    title = f'maps of {WORDS} words, {batch} x {side} x {side}; the peer encodes the words each time'
    calls = {'ours': inference(segment_ours, ours, images), 'peer': inference(segment_peer, peer, images)}
    return [*figures, figure(title, calls, args)]


def figure(title: str, calls: dict[str, Callable[[], object]], args: argparse.Namespace) -> Figure:
    seconds = interleave(calls, args.rounds, args.clock)
    return Figure(
        title,
        written(median(seconds['ours'])),
        written(median(seconds['peer'])),
        paired_ratio(seconds['peer'], seconds['ours']),
        bar=1.0,
        at_least=True,
    )


def build_pair(side: int, device: str) -> tuple[Any, Any]:
    """Both models for images of this size; ours resizes its positions, the peer is built for the size."""
    from transformers import GroupViTConfig, GroupViTModel

    from ovd.conversion.groupvit import export_groupvit, transformers_config
    from ovd.registry import MODELS

    config = {
        'type': 'ovd.GroupViT',
        'image_encoder': {
            'type': 'ovd.GroupingTransformer',
            'image_size': side,
            'dims': (384, 384, 384),
            'depths': (6, 3, 3),
            'num_heads': (6, 6, 6),
            'num_group_tokens': (64, 8, 0),
            'num_output_groups': (64, 8),
        },
        'text_encoder': {'width': 256, 'heads': 4, 'layers': 12},
        'text': {'vocabulary': [f'thing {index}' for index in range(WORDS)]},
    }
    ours = MODELS.build(config).to(device).eval()
    options = transformers_config(config)
    names = ('text_config', 'vision_config', 'projection_dim', 'projection_intermediate_dim')
    peer = GroupViTModel(GroupViTConfig(**{name: options[name] for name in names})).to(device).eval()
    peer.load_state_dict(export_groupvit(ours.state_dict(), 'transformers').tensors)
    return ours, peer


def inference(call: Callable[[Any, torch.Tensor], object], model: Any, images: torch.Tensor) -> Callable:
    def run() -> object:
        with torch.inference_mode():
            return call(model, images)

    return run


def encode_ours(model: Any, images: torch.Tensor) -> object:
    return model.group_predictions(images)


def encode_peer(model: Any, images: torch.Tensor) -> object:
    output = model.vision_model(images, output_attentions=True)
    groups = model.visual_projection(output.last_hidden_state.flatten(0, 1))
    return model.visual_projection(output.pooler_output), groups, output.attentions


def segment_ours(model: Any, images: torch.Tensor) -> object:
    return model.encode_decode(images)


def segment_peer(model: Any, images: torch.Tensor) -> object:
    token_ids = torch.zeros(WORDS, TOKENS, dtype=torch.long, device=images.device)
    token_ids[:, 0], token_ids[:, 1:8], token_ids[:, 8] = 49406, 320, 49407
    return model(input_ids=token_ids, pixel_values=images, output_segmentation=True).segmentation_logits
