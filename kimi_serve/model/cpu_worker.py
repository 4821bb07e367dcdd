"""The same for CPUs: a module of its own, because only vLLM for CPUs has what it imports."""

from vllm.v1.worker.cpu_worker import CPUWorker

from kimi_serve.model.worker import ReadsAdapters


class CpuWorker(ReadsAdapters, CPUWorker):
    pass
