"""Turn words into a file of class vectors: vocabulary x templates -> *.vocab.safetensors.

    python tools/build_text_embeddings.py --vocabulary coco_ov --templates vild63 \\
        --model ViT-B-32-quickgelu --pretrained clip.safetensors --out coco_ov.vocab.safetensors

With --from-matrix, a matrix that someone else published (.npy) is imported instead; then --model only says
which encoder made it.
"""

import argparse
from collections.abc import Sequence

from ....devices import find_device
from ....text.templates import TEMPLATES, get_templates
from ....text.vocabulary import Vocabulary, builtin_vocabularies
from ...console import Parser, say


def parse_args(argv: Sequence[str] | None, program: str | None) -> argparse.Namespace:
    parser = Parser(prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--vocabulary',
        required=True,
        help=f'built-in set ({", ".join(builtin_vocabularies())}), .txt or .json file, or "star, ring"',
    )
    parser.add_argument('--novel', help='names to mark as novel, in any of these spellings')
    parser.add_argument(
        '--templates',
        nargs='+',
        help=f'a named set ({", ".join(TEMPLATES)}; default single) or templates such as "a photo of {{}}."',
    )
    parser.add_argument('--model', help='open_clip architecture, JSON file, or local folder')
    parser.add_argument('--pretrained', help='weights file, release tag, or random:SEED')
    parser.add_argument('--out', required=True, help='file to write, *.vocab.safetensors')
    parser.add_argument('--batch-size', type=int, default=256, help='prompts per forward')
    parser.add_argument('--dtype', default='float32', help='float32, float16 or bfloat16')
    parser.add_argument('--device', help='by default a GPU where there is one')
    parser.add_argument('--from-matrix', metavar='NPY', help='import this [K, D] or [D, K] matrix')
    parser.add_argument('--orientation', default='auto', choices=['auto', 'rows', 'columns'])
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    args = parse_args(argv, program)
    from tqdm import tqdm

    from ....encoders.loading import load_clip
    from ....encoders.text_embeddings import TextEmbeddings
    from ....encoders.text_encoder import TextEncoder

    if not args.out.endswith('.vocab.safetensors'):
        raise ValueError(f'--out {args.out} must end with .vocab.safetensors')
    vocabulary = Vocabulary.parse(args.vocabulary)
    if args.novel:
        vocabulary = Vocabulary.parse({'names': vocabulary, 'novel': args.novel})
    # One word may be the name of a set; several, or anything with a brace, are templates.
    given = args.templates[0] if args.templates and len(args.templates) == 1 else args.templates
    if args.from_matrix:
        fingerprint = load_clip(args.model, args.pretrained).fingerprint if args.model else ''
        built = TextEmbeddings.from_matrix(
            args.from_matrix, vocabulary, given or (), fingerprint, args.orientation
        )
    else:
        if not args.model:
            raise ValueError(
                '--model is needed to encode words; with --from-matrix a matrix is imported instead'
            )
        templates = get_templates(given or 'single')
        device = find_device(args.device)
        encoder = TextEncoder(args.model, args.pretrained, args.dtype).to(device)
        with tqdm(desc='encoding', unit=' prompts', disable=None) as bar:

            def on_progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            built = TextEmbeddings.build(
                vocabulary, templates, encoder, args.batch_size, on_progress=on_progress
            )
    built.save(args.out)
    say(
        f'{args.out}: {len(built)} classes ({sum(vocabulary.is_novel)} novel) x {built.embed_dim}, '
        f'{len(built.templates)} templates, encoder {built.encoder_fingerprint or "unknown"}'
    )
    return 0
