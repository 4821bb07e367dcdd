"""The engines that the golden pack runs through. Knows settings; never starts one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# vLLM binds each worker to a NUMA node of its own and refuses more workers than nodes. One thread: engines of two tests
# share the processors, and threads that spin at a barrier would take twice the time. The engine's core in the process
# that asks: one import of vLLM less.
SHARED = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

Pass = Literal["forced", "batch", "mixed", "again", "vision", "rows", "adapters", "long", "images"]

CHUNK = 64  # tokens a step: smaller than the larger images, so a boundary falls inside one
BLOCK = 32  # tokens a cache block: the shortest prompt fills one


@dataclass(frozen=True, slots=True)
class Configuration:
    """`passes` run in order; `expanded` caches whole keys and values in place of latents."""

    name: str
    passes: tuple[Pass, ...]
    dtype: Literal["float32", "bfloat16"] = "float32"
    expanded: bool = False
    in_tree: bool = False  # vLLM's own class of the same architecture
    quantized: tuple[str, ...] = ()  # what `kimi-serve quantize` is asked for; none: the checkpoint as it is
    plain: str = ""  # with int4: linears whose names match are bfloat16 again
    exact: bool = False  # with int4: activations stay float
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def in_process(self) -> bool:
        """Whether the model lives in the process that asks, where its layers can be watched."""
        return not {"tensor_parallel_size", "pipeline_parallel_size"} & set(self.options)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "VLLM_MLA_DISABLE": "1" if self.expanded else "0",
            "VLLM_CPU_INT4_W4A8": "0" if self.exact else "1",
        }


_CHUNKED = {
    "max_num_batched_tokens": CHUNK,
    "enable_chunked_prefill": True,
    "enable_prefix_caching": True,
    "block_size": BLOCK,
}
_WHOLE = {"enable_chunked_prefill": False, "enable_prefix_caching": False, "max_num_batched_tokens": 8192}
# The only latent backend for float32. Where a CPU has AMX, vLLM would take its bfloat16 backend unasked.
_LATENT = {"attention_backend": "CPU_MLA"}
_ROWS = {"enable_mm_embeds": True}
_MOST_IMAGES = {"limit_mm_per_prompt": {"image": 512}}
# vLLM's own decoder gives its rotary kernel three axes, which the kernel for CPUs gets wrong (test_upstream_rope.py).
_NATIVE_ROPE = {"compilation_config": {"custom_ops": ["all", "-rotary_embedding"]}}
# On CPUs vLLM makes the buffers between pipeline stages while it traces the model, so with enforce_eager it has none.
_TRACED = {"enforce_eager": False, "compilation_config": {"mode": 2, "backend": "eager"}}

_ADAPTERS = {
    "enable_lora": True,
    "max_loras": 2,  # as many as are served: no slot is left empty
    "max_lora_rank": 8,
    "enable_tower_connector_lora": True,
}

_INT4 = ("--scheme", "int4", "--lm-head")
_INT8 = ("--scheme", "int8", "--lm-head")
# A product of the dense layer, of an attention, and of shared experts: each makes its part of a layer a mixed one.
_PLAIN = r"^language_model\.model\.layers\.(0\.mlp\.down_proj|1\.self_attn\.q_proj|2\.mlp\.shared_experts\..*_proj)$"

CONFIGURATIONS = {
    configuration.name: configuration
    for configuration in (
        Configuration(
            "latent",
            ("forced", "batch", "vision", "rows", "images"),
            options=_LATENT | _WHOLE | _ROWS | _MOST_IMAGES,
        ),
        Configuration("expanded-chunked", ("batch", "again", "forced", "long"), expanded=True, options=_CHUNKED),
        Configuration("bfloat16", ("forced", "vision"), dtype="bfloat16"),
        Configuration("bfloat16-amx-chunked", ("batch", "again", "forced"), dtype="bfloat16", options=_CHUNKED),
        Configuration("bfloat16-expanded-chunked", ("forced",), dtype="bfloat16", expanded=True, options=_CHUNKED),
        Configuration(
            "tensor-parallel",
            ("mixed",),
            options=_LATENT | {"tensor_parallel_size": 2},
        ),
        Configuration(
            "pipeline-parallel",
            ("mixed",),
            options=_LATENT | _TRACED | {"pipeline_parallel_size": 2},
        ),
        Configuration(
            "expert-parallel",
            ("mixed",),
            options=_LATENT | {"tensor_parallel_size": 2, "enable_expert_parallel": True},
        ),
        Configuration("adapters-latent", ("adapters",), options=_LATENT | _WHOLE | _ADAPTERS),
        Configuration(
            "adapters-int4",
            ("adapters",),
            quantized=_INT4,
            exact=True,
            expanded=True,
            options=_CHUNKED | _ADAPTERS,
        ),
        # As a plain `vllm serve` runs it. The launcher expands keys and values on CPUs without AMX, as the next three.
        Configuration("int4-exact", ("forced",), quantized=_INT4, exact=True, options=_LATENT | _WHOLE),
        Configuration(
            "int4-mixed", ("forced",), quantized=_INT4, plain=_PLAIN, exact=True, expanded=True, options=_WHOLE
        ),
        Configuration("int4", ("forced",), quantized=(*_INT4, "--tower"), expanded=True, options=_WHOLE),
        Configuration("int8", ("forced",), quantized=(*_INT8, "--tower"), expanded=True, options=_WHOLE),
        Configuration("in-tree", ("forced",), in_tree=True, options=_LATENT | _NATIVE_ROPE),
    )
}
