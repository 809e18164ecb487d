"""LSeg zero-shot on COCO-Stuff: trained on 156 words, tested with all 171; otherwise as
lseg_vitl16_coco_stuff.py.

    torchrun --nproc-per-node 8 tools/train.py configs/lseg_vitl16_coco_stuff_unseen.py --launcher pytorch
    python tools/test.py configs/lseg_vitl16_coco_stuff_unseen.py CHECKPOINT

The 15 unseen classes are those of SPNet (Xian et al., CVPR 2019; recalled). Their pixels are ignored in
training and their words are not in the softmax; testing asks for all words at once and reports mIoU of seen
and unseen classes and the harmonic mean of the two. A split of your own is a JSON file in the place of
`vocabulary`: {"names": "voc", "novel": ["sofa", "train"]}. About 20 GB per GPU with --amp (estimate). No
published score of LSeg. Not yet trained by us.
"""

_base_ = './lseg_vitl16_coco_stuff.py'

vocabulary = 'cocostuff_unseen15'  # ovd/assets/vocabularies/cocostuff_unseen15.json
