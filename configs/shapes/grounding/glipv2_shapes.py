"""GLIPv2 on OV-Shapes: glip_shapes.py with region-word contrast, hidden words and masks.

    python tools/make_shapes.py --out data/shapes
    python tools/train.py configs/glipv2_shapes.py
    python tools/test.py configs/glipv2_shapes.py work_dirs/glipv2_shapes/latest.pth

Zhang et al., NeurIPS 2022, in small. All nouns have boxes in captions; only the 16 base nouns have
masks, and boxes of class lists. glipv2_shapes_masks.py tests detection and masks. Not tuned; scores are in
docs/glip_shapes.md.
"""

_base_ = '../../_base_/models/glip_shapes.py'

class_list_file = 'annotations/instances_train.json'  # base classes only
class_list_words = 'shapes'  # novel names are never drawn
class_list_masks = True
class_list_keys = (*_base_.meta_keys, 'caption_ranges')
tokenizer = 'bert_tiny_shapes'  # reads tokens one by one, so words can be hidden from it
model = dict(
    type='ovd.GLIPv2',
    text=dict(encoder=dict(_delete_=True, model=tokenizer)),
    contrast=dict(embed_dim=64, max_positives=100, weight=0.1),
    language=dict(rate=0.15, mask_share=0.8, random_share=0.1, weight=0.5),
    masks=dict(
        hidden_channels=32,
        num_convs=2,
        roi_size=10,
        sampling_ratio=1,
        strides=(8, 16),
        finest_scale=28,
        max_detections=20,
    ),
    masks_at_test=False,  # phrases are scored by their boxes
)
