"""When the segments since the last checkpoint are folded into a new one: by what they weigh.

A checkpoint costs what the tree has, a segment what was changed. So one is made when whoever mounts
would read as much of segments as of the checkpoint before them: then what checkpoints cost is in
proportion to what was sealed in between, whatever the tree's size.

Invariants
1. Never before `segments_min` segments, unless there are BYTES_MAX of them.
2. Never later than SEGMENTS_MAX segments: so much is replayed at most by a mount, and by whoever
   looks at a point of history.

Pure. Called by replica.flusher.
"""

from __future__ import annotations

from typing import Final

SEGMENTS_MIN: Final = 64
SEGMENTS_MAX: Final = 512
BYTES_MAX: Final = 256 << 20
SEGMENT_COST_BYTES: Final = 64 << 10
"""What one more segment costs a mount (a request, a header to check), in bytes of a checkpoint."""


def is_due(
    segments: int, segment_bytes: int, checkpoint_bytes: int, segments_min: int = SEGMENTS_MIN
) -> bool:
    """Whether a checkpoint is to be made together with the next segment.

    `segments`: how many there are above the last checkpoint, with the next; `segment_bytes`: of
    those that are sealed; `checkpoint_bytes`: of the last checkpoint (0: there is none).
    """
    if segments >= SEGMENTS_MAX or segment_bytes >= BYTES_MAX:
        return True
    weight_bytes = segment_bytes + segments * SEGMENT_COST_BYTES
    return segments >= segments_min and weight_bytes >= checkpoint_bytes
