"""File name suffixes of audio formats that libsndfile or FFmpeg may be able to read.

The suffix only selects candidates; a file's content determines its decoder.
"""

from __future__ import annotations

AUDIO_SUFFIXES = frozenset(
    {
        # uncompressed and lossless
        *(".wav", ".wave", ".rf64", ".w64", ".bwf", ".aiff", ".aif", ".aifc", ".au", ".snd"),
        *(".caf", ".flac", ".tta", ".tak", ".ape", ".wv", ".shn", ".dsf", ".dff"),
        *(".sph", ".nist", ".voc", ".avr", ".ircam", ".sf", ".svx", ".8svx", ".iff", ".paf"),
        *(".fap", ".pvf", ".sd2", ".htk", ".sds", ".mlp", ".thd"),
        # lossy
        *(".mp1", ".mp2", ".mp3", ".mpa", ".mpga", ".m2a", ".ogg", ".oga", ".ogx", ".opus", ".spx"),
        *(".aac", ".adts", ".ac3", ".eac3", ".ec3", ".dts", ".dtshd", ".amr", ".awb", ".gsm"),
        *(".wma", ".ra", ".mpc", ".oma", ".aa3", ".qcp", ".adx", ".sbc", ".xwma", ".wve"),
        # containers that may also hold video
        *(".mkv", ".mka", ".mk3d", ".webm", ".weba", ".mp4", ".m4a", ".m4b", ".m4r", ".m4v"),
        *(".mov", ".qt", ".3gp", ".3gpp", ".3g2", ".avi", ".divx", ".asf", ".wmv", ".flv"),
        *(".f4v", ".f4a", ".ts", ".m2ts", ".mts", ".m2t", ".mpg", ".mpeg", ".vob", ".rm"),
        *(".rmvb", ".ogv", ".ogm", ".nut", ".mxf", ".dv"),
    }
)

SOUNDFILE_SUFFIXES = frozenset(
    {".flac", ".wav", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64", ".sph"}
)
