"""Both stop ids hold whatever generation_config.json says: vLLM's own combination of what the files and we give it."""

import json
import shutil
from pathlib import Path

import pytest

from tests.vllm_host import Host

pytestmark = pytest.mark.slow  # imports vLLM in a process of its own

ROOT = Path(__file__).parents[2]
EOS, IM_END, OTHER = 1025, 1026, 7
MISSING = "no file"

# What `vllm serve` does with a checkpoint: configuration, tokenizer, then a request's parameters.
PROBE = """
import json, sys
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.tokenizers import cached_tokenizer_from_config

for directory, generation in json.loads(sys.argv[1]):
    config = EngineArgs(directory, generation_config=generation, max_model_len=512).create_engine_config().model_config
    params = SamplingParams.from_optional(**config.get_diff_sampling_param())
    params.update_from_generation_config(
        config.try_get_generation_config(), cached_tokenizer_from_config(config).eos_token_id
    )
    ends = sorted({params._eos_token_id, *params.stop_token_ids})
    print("STOPS", json.dumps([ends, params.temperature]))
"""

CASES = [
    ([EOS, IM_END], "auto"),
    ([EOS], "auto"),
    ([IM_END], "auto"),
    (IM_END, "auto"),
    (None, "auto"),
    ([OTHER], "auto"),
    (MISSING, "auto"),
    (None, "vllm"),
    ([EOS, IM_END], "vllm"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, vllm_host: Host) -> list[tuple[list[int], float]]:
    """Stop ids and temperature for each case: one process, because importing vLLM takes most of the time."""
    checkpoints = []
    for index, (stated, generation) in enumerate(CASES):
        target = tmp_path_factory.mktemp(f"case{index}") / "kimi-vl"
        shutil.copytree(ROOT / "tests" / "golden" / "checkpoint", target)
        file = target / "generation_config.json"
        if stated == MISSING:
            file.unlink()
        else:
            raw = json.loads(file.read_text(encoding="utf-8")) | {"eos_token_id": stated, "temperature": 0.35}
            file.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
        checkpoints.append((str(target), generation))
    ran = vllm_host.run("-c", PROBE, json.dumps(checkpoints))
    assert ran.status == 0, ran.stderr[-4000:]
    return [json.loads(line.split(" ", 1)[1]) for line in ran.stdout.splitlines() if line.startswith("STOPS")]


@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{stated}-{generation}" for stated, generation in CASES])
def test_generation_ends_at_eos_and_at_im_end(index, found):
    stops, _ = found[index]
    assert {EOS, IM_END} <= set(stops)


def test_other_stop_ids_of_the_file_hold_too(found):
    stops, _ = found[CASES.index(([OTHER], "auto"))]
    assert OTHER in stops


def test_completed_file_keeps_the_temperature_of_the_given_one(found):
    assert found[CASES.index((None, "auto"))][1] == 0.35


def test_completed_file_leaves_vllms_neutral_sampling_neutral(found):
    assert found[CASES.index((None, "vllm"))][1] == found[CASES.index(([EOS, IM_END], "vllm"))][1] == 1.0
