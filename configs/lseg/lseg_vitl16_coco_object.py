"""LSeg on COCO-Object: 80 words and a learned background vector, ViT-L/16.

    torchrun --nproc-per-node 8 tools/train.py configs/lseg_vitl16_coco_object.py --launcher pytorch
    python tools/test.py configs/lseg_vitl16_coco_object.py work_dirs/lseg_vitl16_coco_object/latest.pth

The model of Li et al., ICLR 2022, and its optimiser; the length of training is our choice, the paper has no
such experiment and no score. About 20 GB per GPU with --amp (estimate). Not yet trained by us.
"""

_base_ = [
    '../_base_/models/lseg_vitl16.py',
    '../_base_/datasets/segmentation.py',
    '../_base_/schedules/lseg.py',
]

data = 'coco_object'
vocabulary = 'coco'  # ovd/assets/vocabularies/coco.json
max_iters = 80000  # 22 epochs of 118,287 images in batches of 32
needs = dict(always=_base_.model_needs)
model = dict(text=dict(vocabulary=vocabulary), head=dict(with_background=True))
