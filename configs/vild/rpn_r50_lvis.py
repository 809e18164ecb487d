"""Class-agnostic region proposals on LVIS v1, trained on the boxes of the 866 base classes alone.

    python tools/train.py configs/rpn_r50_lvis.py
    torchrun --nproc-per-node 8 tools/train.py configs/rpn_r50_lvis.py --launcher pytorch

First step of ViLD: CLIP embeds its best boxes (tools/cache_clip_regions.py configs/vild_r50_lvis.py). Recall
of the 300 best boxes on novel classes, averaged over IoU 0.5 to 0.95: 48.3 in the paper, against 50.9 when
trained on all.
"""

_base_ = './rpn_r50_coco.py'

data = 'lvis'
vocabulary = 'lvis'  # 1203 names, the 337 rare ones novel: ovd/assets/vocabularies/lvis.json
