"""Turn a published checkpoint into one of ours, or DetPro's prompt file into class vectors.

    python tools/convert_checkpoint.py epoch_20.pth vild_detpro.safetensors \\
        --config configs/vild_r50_lvis_reference_detpro.py
    python tools/convert_checkpoint.py --prompts iou_neg5_ens.pth detpro.vocab.safetensors --vocabulary lvis
    python tools/convert_checkpoint.py --from lseg demo_e200.ckpt lseg.safetensors \\
        --config configs/lseg_vitl16_ade20k.py
    python tools/convert_checkpoint.py --from groupvit group_vit_gcc_yfcc_30e.pth groupvit.safetensors
    python tools/convert_checkpoint.py --to transformers groupvit.safetensors exported/model.safetensors \\
        --config configs/groupvit_vits16_gcc_yfcc.py

Layouts: detpro (DetPro and ViLD*, mmdet 2.x), lseg (isl-org/lang-seg), groupvit (NVlabs/GroupViT or
transformers), glip (mmdet or microsoft/GLIP), glipv2 (glip with its head for hidden words). The file is read
weights-only. The copy of CLIP inside it is left out, and what its own code never uses; every key without a
counterpart is listed. With --config the result is compared with that model, and refused if a weight is
missing or of another shape.

--to takes weights of ours back: 'nvlabs' writes a .pth file, 'transformers' a .safetensors file and, with
--config, the config.json that belongs beside it.
"""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from ...console import Parser, say

# Name of a layout -> (what it is called in the metadata, module and function that convert it).
LAYOUTS = {
    'detpro': ('DetPro', 'ovd.conversion.vild', 'convert_detpro'),
    'lseg': ('LSeg', 'ovd.conversion.lseg', 'convert_lseg'),
    'groupvit': ('GroupViT', 'ovd.conversion.groupvit', 'convert_groupvit'),
    'glip': ('GLIP', 'ovd.conversion.glip', 'convert_glip'),
    'glipv2': ('GLIP', 'ovd.conversion.glip', 'convert_glipv2'),
}
# Layouts of GroupViT that can be written -> suffix of the file.
EXPORTS = {'nvlabs': '.pth', 'transformers': '.safetensors'}


def main(argv: Sequence[str] | None = None, program: str | None = None) -> None:
    """Convert one file and say what became of every key."""
    parser = Parser(prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help='checkpoint, or prompt file with --prompts')
    parser.add_argument(
        'out', type=Path, help='file to write: *.safetensors, *.vocab.safetensors with --prompts'
    )
    parser.add_argument(
        '--from', dest='layout', choices=list(LAYOUTS), default='detpro', help='layout of the checkpoint'
    )
    parser.add_argument('--to', choices=list(EXPORTS), help='write GroupViT weights of ours in this layout')
    parser.add_argument('--config', help='model that the weights must fit')
    parser.add_argument('--prompts', action='store_true', help='convert a prompt file')
    parser.add_argument('--vocabulary', default='lvis', help='words of the prompt file, in its order')
    args = parser.parse_args(argv)
    suffix = '.vocab.safetensors' if args.prompts else EXPORTS.get(args.to, '.safetensors')
    if not args.out.name.endswith(suffix):
        raise ValueError(f'{args.out} must end with {suffix}')
    if args.prompts:
        convert_prompts(args.source, args.out, args.vocabulary)
    elif args.to:
        export_weights(args.source, args.out, args.config, args.to)
    else:
        convert_weights(args.source, args.out, args.config, args.layout)


def convert_prompts(source: Path, out: Path, words: str) -> None:
    """A tensor of class prompts -> a text embeddings file."""
    from torch import Tensor

    from ....checkpoints.reading import read_checkpoint
    from ....conversion.vild import convert_detpro_prompts
    from ....text.vocabulary import Vocabulary

    prompts = read_checkpoint(source)
    if not isinstance(prompts, Tensor):
        raise ValueError(f'{source}: expected one tensor of prompts, found {type(prompts).__name__}')
    embeddings = convert_detpro_prompts(prompts, Vocabulary.parse(words))
    embeddings.save(out)
    say(f'{out}: {len(embeddings)} class vectors of width {embeddings.embed_dim}')


def convert_weights(source: Path, out: Path, config: str | None, layout: str) -> None:
    """A model's checkpoint -> ours, with a list of what was left out."""
    from ....checkpoints.loading import load_tensors
    from ....checkpoints.writing import save_tensors
    from ....files import sha256_file

    title, module, function = LAYOUTS[layout]
    tensors = load_tensors(source)
    try:
        converted = getattr(importlib.import_module(module), function)(tensors)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    if not converted.tensors:
        raise ValueError(f'{source}: no tensor has a counterpart, --from {layout} is not its layout')
    for note in converted.notes:
        say(note)
    for key in converted.unmatched:
        say(f'no counterpart: {key}')
    if config:
        check(converted.tensors, config)
    save_tensors(out, converted.tensors, {'converted_from': title, 'source_sha256': sha256_file(source)})
    say(
        f'{out}: {len(converted.tensors)} tensors; left out {len(converted.stripped)} on purpose and '
        f'{len(converted.unmatched)} without a counterpart'
    )


def export_weights(source: Path, out: Path, config: str | None, layout: str) -> None:
    """GroupViT weights of ours -> another layout, with a list of what was left out."""
    from ....checkpoints.loading import load_tensors
    from ....checkpoints.writing import save_checkpoint, save_tensors
    from ....config import load_config
    from ....conversion.groupvit import export_groupvit, transformers_config
    from ....files import write_json

    tensors = load_tensors(source)
    if config:
        check(tensors, config)
    exported = export_groupvit(tensors, layout)
    if not exported.tensors:
        raise ValueError(
            f'{source}: no tensor fits --to {layout}, which takes the weights of a GroupViT of ours'
        )
    for key in (*exported.stripped, *exported.unmatched):
        say(f'no place in the layout of {layout}: {key}')
    if layout == 'nvlabs':
        save_checkpoint({'model': exported.tensors}, str(out))
    else:
        if config:
            write_json(out.parent / 'config.json', transformers_config(load_config(config).model))
        save_tensors(out, exported.tensors, {'format': 'pt'})
    say(f'{out}: {len(exported.tensors)} tensors in the layout of {layout}')


def check(tensors: dict, config_path: str) -> None:
    """Refuse weights that do not fill the config's model; list what it has no place for."""
    import mmdet.models  # noqa: F401
    from mmengine.registry import init_default_scope

    from ....checkpoints.comparing import compare
    from ....config import load_config
    from ....registry import MODELS

    config = load_config(config_path)
    init_default_scope(config.get('default_scope', 'mmdet'))
    if 'backbone' in config.model:
        config.model.backbone.init_cfg = None
    report = compare(MODELS.build(config.model), tensors)
    for key in report.unexpected:
        say(f'not in {config_path}: {key}')
    if report.missing or report.mismatched:
        raise ValueError(f'the weights do not fill the model of {config_path}: {report}')
