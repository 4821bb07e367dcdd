"""What a checkpoint needs, told from its files."""

from pathlib import Path

import pytest

from kimi_serve.errors import CheckpointError
from kimi_serve.launch import footprint


def test_the_golden_checkpoint_is_sized_from_its_own_files(checkpoint: Path) -> None:
    needs = footprint.read(checkpoint)
    assert needs.weights == 1 << 20
    assert needs.latent_per_token == 2 * 4 * (512 + 64)
    assert needs.expanded_per_token == 2 * 4 * 2 * 4 * 192
    assert needs.max_positions == 131_072
    assert needs.max_image_tokens > 0


def test_a_directory_without_weights_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors file"):
        footprint.read(checkpoint)
