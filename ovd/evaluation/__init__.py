from . import detection, voc  # noqa: F401
