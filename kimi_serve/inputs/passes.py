"""Which images go through the vision tower together. Knows grids; never a pixel or a tensor."""

from collections.abc import Sequence

from kimi_serve.inputs.geometry import Grid

# A pass is never larger than this, or than its one image: what the tower holds does not grow with the request.
PATCHES = 16_384
CPU_PATCHES = 4_096  # a CPU is busy with less, and has its caches to mind
FEED_PATCHES = 4_096  # through a feed-forward layer at a time: its inner values are wide


def passes(grids: Sequence[Grid], most: int) -> list[list[int]]:
    """Return the images of each pass by number, every image once: at most `most` patches, or one larger image.

    Images of one length lie side by side, so that attention takes them in one call, and a CPU knows few lengths a pass.
    """
    found: list[list[int]] = []
    room = 0
    for number in sorted(range(len(grids)), key=lambda i: (-grids[i].num_patches, grids[i].height, i)):
        if grids[number].num_patches > room:
            found.append([])
            room = most
        found[-1].append(number)
        room -= grids[number].num_patches
    return found
