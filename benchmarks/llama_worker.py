"""llama.cpp behind two pipes: runs in the peers' environment, with llama-cpp-python. Knows nothing of this package.

python llama_worker.py MODEL.gguf THREADS    answers each line {"prompts": [[id, ...], ...], "tokens": n}
with {"tokens": counted, "seconds": s, "distinct": d}: what was decoded after the prompts. With "tokens": 0, the
prompts alone are timed.
"""

import ctypes
import json
import sys
import time

import llama_cpp
import numpy as np

CONTEXT, BATCH, MICRO_BATCH, SEQUENCES = 8192, 2048, 512, 16


def main(path: str, threads: int) -> None:
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"{path}: llama.cpp does not load it")
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = CONTEXT, BATCH, MICRO_BATCH
    parameters.n_seq_max, parameters.kv_unified = SEQUENCES, True
    parameters.n_threads = parameters.n_threads_batch = threads
    session = Session(llama_cpp.llama_init_from_model(model, parameters), model)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(session.answer(asked["prompts"], asked["tokens"])), flush=True)


class Session:
    def __init__(self, context: object, model: object) -> None:
        self.context = context
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def answer(self, prompts: list[list[int]], tokens: int) -> dict[str, float]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        begun = time.perf_counter()
        chosen = self.read(prompts)
        if tokens == 0:
            return {"tokens": sum(map(len, prompts)), "seconds": time.perf_counter() - begun, "distinct": 0}
        seen, begun = set(chosen), time.perf_counter()
        for step in range(tokens - 1):
            entries = [(token, len(prompts[i]) + step, i, True) for i, token in enumerate(chosen)]
            self.run(entries)
            chosen = [self.choose(i) for i in range(len(entries))]
            seen.update(chosen)
        return {
            "tokens": (tokens - 1) * len(prompts),
            "seconds": time.perf_counter() - begun,
            "distinct": len(seen),
        }

    def read(self, prompts: list[list[int]]) -> list[int]:
        """The token after each prompt."""
        entries, ends = [], []
        for i, ids in enumerate(prompts):
            entries += [(token, at, i, at == len(ids) - 1) for at, token in enumerate(ids)]
            ends.append(len(entries) - 1)
        self.run(entries)
        return [self.choose(end) for end in ends]

    def run(self, entries: list[tuple[int, int, int, bool]]) -> None:
        for at, (token, position, sequence, wants_logits) in enumerate(entries):
            self.batch.token[at], self.batch.pos[at] = token, position
            self.batch.n_seq_id[at], self.batch.seq_id[at][0] = 1, sequence
            self.batch.logits[at] = wants_logits
        self.batch.n_tokens = len(entries)
        if status := llama_cpp.llama_decode(self.context, self.batch):
            raise SystemExit(f"llama_decode: {status}")

    def choose(self, index: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.context, index)
        values = np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self.vocabulary,))
        return int(values.argmax())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
