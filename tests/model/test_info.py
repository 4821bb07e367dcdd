"""What an engine tells gateways about itself, from vLLM's own configuration."""

from types import SimpleNamespace

import pytest
from vllm.config import ParallelConfig, SchedulerConfig

from kimi_serve.model.info import _max_running_requests

RANKS = {"data_parallel_size": 4, "data_parallel_size_local": 2}


@pytest.mark.parametrize(
    ("scheduler", "parallel", "told"),
    [
        ({}, {}, 16),
        ({"max_num_active_seqs": 12}, {}, 12),
        ({}, RANKS, 64),
        ({}, {**RANKS, "data_parallel_hybrid_lb": True}, 32),
        ({}, {"data_parallel_size": 4, "data_parallel_external_lb": True, "data_parallel_rank": 1}, 16),
    ],
    ids=["one rank", "a smaller batch", "all ranks behind it", "ranks of this node", "a rank of its own"],
)
def test_an_engine_says_how_many_requests_run_at_once(
    scheduler: dict[str, int], parallel: dict[str, int], told: int
) -> None:
    config = SimpleNamespace(
        scheduler_config=SchedulerConfig(
            max_num_seqs=16, max_model_len=4096, max_num_batched_tokens=4096, is_encoder_decoder=False, **scheduler
        ),
        parallel_config=ParallelConfig(**parallel),
    )
    assert _max_running_requests(config) == told
