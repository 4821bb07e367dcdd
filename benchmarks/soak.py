"""Our gateway's memory over many requests. Knows counts and resident memory; judges nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tqdm import tqdm

from benchmarks import targets
from benchmarks.wire import stand_in
from benchmarks.workloads import stream, workloads
from kimi_serve.launch.up import free_port

STEPS = 10
CLIENTS = 16


def run(requests: int, engine_core: int, gateway_core: int) -> dict[str, object]:
    """Text, pictures and streams in turns. Memory is read while nothing is under way."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        with (
            stand_in(folder, free_port(), engine_core) as engine,
            targets.ours(folder, engine.port, gateway_core) as gateway,
        ):
            text, picture, _ = workloads()
            kinds = {"text": (text.body, 0.8), "picture": (picture.body, 0.2)}
            seen = [gateway.resident_mib()]
            done = errors = 0
            with tqdm(total=requests, unit="request") as bar:
                while done < requests:
                    for name, (body, share) in kinds.items():
                        file = folder / name
                        file.write_bytes(gateway.request(body))
                        found = engine.flat_out(gateway.port, file, CLIENTS, share)
                        done, errors = done + found.done, errors + found.errors
                        bar.update(found.done)
                    if done >= requests * len(seen) // STEPS:
                        file = folder / "stream"
                        file.write_bytes(gateway.request(stream()))
                        errors += engine.frames(gateway.port, file, CLIENTS, 0.5, 1).errors
                        seen.append(gateway.resident_mib())
                        bar.write(f"{done} requests: {seen[-1]:.1f} MiB resident")
    return {"requests": done, "errors": errors, "resident_mib": [round(one, 1) for one in seen]}
