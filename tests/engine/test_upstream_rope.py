"""A fault of vLLM 0.32.0 that our attention works around. When this test fails, the work-around can go.

Then delete this file, the folding in kimi_serve/model/attention.py (Rotation), and the custom_ops setting of the
in-tree configuration.
"""

import pytest

from tests.vllm_host import Host

pytestmark = pytest.mark.engine

PROBE = """
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding import get_rope

with set_current_vllm_config(VllmConfig()):
    rope = get_rope(
        64, max_position=128, rope_parameters={"rope_type": "default", "rope_theta": 8e5}, is_neox_style=False,
        dtype=torch.float32,
    )
    torch.manual_seed(0)
    positions, q, k = torch.arange(40), torch.randn(40, 4, 64), torch.randn(40, 1, 64)
    right = rope.forward_native(positions, q.clone(), k.clone())[0]
    three_axes = rope.forward_cpu(positions, q.clone(), k.clone())[0]
    folded = rope.forward_cpu(positions, q.flatten(1).clone(), k.flatten(1).clone())[0].view(q.shape)
    print((three_axes - right).abs().max().item(), (folded - right).abs().max().item())
"""


def test_cpu_rotary_kernel_is_wrong_for_three_axes_and_right_for_folded_heads(vllm_host: Host) -> None:
    ran = vllm_host.run("-c", PROBE)
    assert ran.status == 0, ran.stderr
    three_axes, folded = map(float, ran.stdout.split()[-2:])
    assert folded < 1e-5
    assert three_axes > 0.1, "vLLM's kernel is mended: remove the work-around in kimi_serve/model/attention.py"
