"""LSeg on PASCAL Context: 59 words and a learned background vector, ViT-L/16.

    torchrun --nproc-per-node 8 tools/train.py configs/lseg_vitl16_context.py --launcher pytorch
    python tools/test.py configs/lseg_vitl16_context.py work_dirs/lseg_vitl16_context/latest.pth

The model of Li et al., ICLR 2022, and its optimiser; the length of training is our choice, the paper has no
such experiment and no score. About 20 GB per GPU with --amp (estimate). Not yet trained by us.
"""

_base_ = [
    '../_base_/models/lseg_vitl16.py',
    '../_base_/datasets/segmentation.py',
    '../_base_/schedules/lseg.py',
]

data = 'context'
vocabulary = 'context59'  # ovd/assets/vocabularies/context59.json
max_iters = 40000  # 256 epochs of 4,998 images in batches of 32
needs = dict(always=_base_.model_needs)
model = dict(text=dict(vocabulary=vocabulary), head=dict(with_background=True))
