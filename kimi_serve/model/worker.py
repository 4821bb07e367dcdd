"""A worker that reads a whole adapter before vLLM loads it. Knows one request; what is right about it is not its own.

vLLM 0.32 copies matrices of a smaller model into the corner of its own, and ignores what adapter_config.json says that
it does not know. --worker-cls wins over this class; then the names are still checked (model/lora.py), shapes are not.
"""

from pathlib import Path

from vllm.config import VllmConfig
from vllm.lora.request import LoRARequest
from vllm.lora.utils import get_adapter_absolute_path
from vllm.v1.worker.gpu_worker import Worker
from vllm.v1.worker.worker_base import WorkerBase

from kimi_serve.errors import AdapterError
from kimi_serve.inputs.adapter import CONFIG, read_adapter
from kimi_serve.inputs.config import parse_model_config
from kimi_serve.model.lora import Served


class ReadsAdapters(WorkerBase):
    """Stands before a platform's worker."""

    def add_lora(self, lora_request: LoRARequest) -> bool:
        check_adapter(self.vllm_config, lora_request)
        return super().add_lora(lora_request)


def check_adapter(vllm_config: VllmConfig, request: LoRARequest) -> None:
    """Raise AdapterError unless every part of the adapter is applied. One that is not there is vLLM's to report."""
    directory = Path(get_adapter_absolute_path(request.lora_path))
    if not (directory / CONFIG).exists():
        return
    model = parse_model_config(vllm_config.model_config.hf_config.to_dict())
    served = Served.of(vllm_config, model)
    try:
        for module in read_adapter(directory, model).pairs:
            served.check(module)
    except AdapterError as error:
        raise AdapterError(f"adapter {request.lora_name!r} is refused: {error}") from error


class GpuWorker(ReadsAdapters, Worker):
    pass
