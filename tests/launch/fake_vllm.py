"""Stands in for `vllm serve`: logs as vLLM does, has a child process, answers /health and /v1/models. No model.

FAKE_VLLM chooses how it goes wrong: `dies` while loading, `silent` (never answers), `stubborn` (nor does it end when
asked to), `crashes` (once it has answered /v1/models). Or right: `answers` (requests too, as the tests' fake engine
does), `answers 5` (and dies with the fifth).
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

MODE = os.environ.get("FAKE_VLLM", "")
CHILD = "import time; time.sleep(600)"
STUBBORN_CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        listing = {"data": [{"id": flag("--served-model-name", sys.argv[2]), "max_model_len": 4096}]}
        info = {"model_class": "kimi_serve.model.kimi_vl.KimiVLForConditionalGeneration"}
        body = json.dumps(listing) if "models" in self.path else json.dumps(info) if "plugins" in self.path else ""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())
        self.wfile.flush()
        if MODE == "crashes" and "models" in self.path:
            os._exit(7)

    def log_message(self, *_: object) -> None:
        pass


def flag(name: str, default: str) -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def answer(most: int) -> None:
    from kimi_serve.testing import serving
    from kimi_serve.testing.dials import Dials
    from kimi_serve.testing.fake_engine import FakeEngine

    double = FakeEngine(
        Dials(model=flag("--served-model-name", sys.argv[2]), max_model_len=4096, ttft_s=0.05, tokens=2)
    )

    def die() -> None:
        while double.record.count < most:
            time.sleep(0.01)
        os._exit(7)

    if most:
        threading.Thread(target=die, daemon=True).start()
    serving.run(double, port=int(flag("--port", "8000")))
    sys.exit(0)


def main() -> None:
    print("INFO vLLM API server version 0.32.0, non-default args: {}", flush=True)
    print("INFO Initializing a V1 LLM engine (v0.32.0)", flush=True)
    child = subprocess.Popen(
        [sys.executable, "-c", STUBBORN_CHILD if MODE == "stubborn" else CHILD]
    )  # the engine process
    print("Loading safetensors checkpoint shards:  50% Completed | 1/2", flush=True)
    if MODE == "dies":
        sys.exit("ValueError: the fake engine ran out of everything")

    def end(*_: object) -> None:
        child.terminate()
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    if MODE == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if MODE in ("silent", "stubborn"):
        time.sleep(600)
    time.sleep(0.5)
    if MODE.startswith("answers"):
        answer(int(MODE.removeprefix("answers") or 0))
    HTTPServer((flag("--host", "127.0.0.1"), int(flag("--port", "8000"))), Handler).serve_forever()


if __name__ == "__main__":
    main()
