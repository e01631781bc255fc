"""Sources and lists of data sets that their authors publish."""

from __future__ import annotations

KS_WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
KS_SOURCE = "http://download.tensorflow.org/data/"
SID_SOURCE = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html"
SID_LIST_SOURCE = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt"
SID_LISTS = ("veri_test_class.txt", "iden_split.txt")  # names in s3prl and in VoxCeleb
