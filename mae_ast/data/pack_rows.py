"""Distribute clips over rows of equal length: best-fit bin packing."""

from __future__ import annotations

from collections.abc import Sequence

from sortedcontainers import SortedList


def pack_rows(sizes: Sequence[int], capacity: int, max_clips: int) -> list[list[int]]:
    """Put each clip into the fullest row that has room for it, in the order of the clips.

    The rows are kept by the room that is left in them, in an ordered list, so that the time is
    about linear in the number of clips: some seconds for two million.

    Args:
        sizes: size of each clip, at least 1 and at most ``capacity``.
        capacity: size of a row.
        max_clips: maximum number of clips of a row.

    Returns:
        Rows of indices into ``sizes``.
    """
    rows: list[list[int]] = []
    rooms: SortedList[int] = SortedList()  # distinct sizes of the room that is left
    with_room: dict[int, list[int]] = {}  # rows, by the room that is left
    for index, size in enumerate(sizes):
        place = rooms.bisect_left(size)
        if place < len(rooms):
            room = rooms[place]
            candidates = with_room[room]
            row = candidates.pop()
            if not candidates:
                del rooms[place], with_room[room]
        else:
            row, room = len(rows), capacity
            rows.append([])
        rows[row].append(index)
        room -= size
        if room and len(rows[row]) < max_clips:
            if room not in with_room:
                rooms.add(room)
                with_room[room] = []
            with_room[room].append(row)
    return rows
