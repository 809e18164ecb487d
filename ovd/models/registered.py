"""Importing this module registers every model and every part that a config can name."""

import ovd.models.clip_pretraining
import ovd.models.clip_resnet
import ovd.models.glip.detector
import ovd.models.glip.detector_v2
import ovd.models.groupvit.conv_encoder
import ovd.models.groupvit.encoder
import ovd.models.groupvit.readout
import ovd.models.groupvit.segmentor
import ovd.models.groupvit.word_objectives
import ovd.models.lseg.dpt
import ovd.models.lseg.segmentor
import ovd.models.training_free.detector
import ovd.models.training_free.segmentor
import ovd.models.vild.bbox_head
import ovd.models.vild.box_coder
import ovd.models.vild.detector
import ovd.models.vild.sampler  # noqa: F401
