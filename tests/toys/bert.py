"""A BERT of toy size with a WordPiece vocabulary of a few words."""

import json
from pathlib import Path

WORDS = (
    *('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', ',', "'", '+', '[', ']', '(', ')', '-', '/'),
    *'abcdefghijklmnopqrstuvwxyz0123456789',
    *('##' + char for char in 'abcdefghijklmnopqrstuvwxyz0123456789'),
    *('a', 'and', 'above', 'red', 'blue', 'star', 'ring', 'car', '##t', '##s', 'dog', 'flag', 'the', 'big'),
    *('cat', 'bird', 'person', 'light', 'traffic', 'cup', 'class', 'cafe', '東', '京'),
)


def write_bert(folder: Path, width: int = 24, layers: int = 1, heads: int = 4, inner: int = 48) -> Path:
    """A folder with the configuration and the tokenizer of a toy BERT, without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    words = list(dict.fromkeys(WORDS))
    (folder / 'vocab.txt').write_text('\n'.join(words) + '\n', encoding='utf-8')
    (folder / 'tokenizer_config.json').write_text(
        json.dumps({'tokenizer_class': 'BertTokenizer', 'do_lower_case': True})
    )
    (folder / 'config.json').write_text(
        json.dumps(
            {
                'model_type': 'bert',
                'vocab_size': len(words),
                'hidden_size': width,
                'num_hidden_layers': layers,
                'num_attention_heads': heads,
                'intermediate_size': inner,
                'max_position_embeddings': 256,
            }
        )
    )
    return folder
