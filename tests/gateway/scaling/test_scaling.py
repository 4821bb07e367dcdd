"""Pictures scaled down in processes: every format, upright, the same bytes each time, and within limits."""

import asyncio
import io
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from PIL import Image

from kimi_serve.gateway.media.headers import READERS, read_header
from kimi_serve.gateway.scaling import worker
from kimi_serve.gateway.scaling.pool import Job, Pool
from kimi_serve.gateway.scaling.scaler import Key, Scaled, cache
from kimi_serve.gateway.scaling.worker import UnfitError, scale
from kimi_serve.protocol.errors import ApiError

PILLOW = {"JPEG": "JPEG", "PNG": "PNG", "WebP": "WEBP", "GIF": "GIF", "BMP": "BMP", "TIFF": "TIFF", "AVIF": "AVIF"}
RED, BLUE = (250, 10, 10), (10, 10, 250)


def drawn(width: int = 600, height: int = 400, mode: str = "RGB") -> Image.Image:
    """Red, and its upper left quarter blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (0, 0, width // 2, height // 2))
    return image.convert(mode)


def stored(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def near(found: object, wanted: tuple[int, int, int]) -> bool:
    assert isinstance(found, tuple)
    return all(abs(a - b) < 30 for a, b in zip(found, wanted, strict=False))


def test_every_format_that_is_measured_can_be_scaled() -> None:
    assert list(worker.READERS) == list(READERS)


@pytest.mark.parametrize("kind", READERS)
def test_a_picture_of_any_format_keeps_its_colours_in_another_size(kind: str) -> None:
    data = stored(drawn(), PILLOW[kind])
    media_type, smaller = scale(data, kind, (600, 400), (150, 100))
    header = read_header(smaller)
    assert (header.width, header.height) == opened(smaller).size == (150, 100)
    assert media_type == ("image/jpeg" if kind in ("JPEG", "WebP", "AVIF") else "image/png")
    image = opened(smaller).convert("RGB")
    assert near(image.getpixel((10, 10)), BLUE)
    assert near(image.getpixel((140, 90)), RED)
    assert scale(data, kind, (600, 400), (150, 100)) == (media_type, smaller)


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF"])
def test_an_orientation_is_applied_once(kind: str, turned: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turned
    data = stored(drawn(1200, 800), PILLOW[kind], exif=exif)
    header = read_header(data)
    stated = header.width, header.height
    assert stated == ((800, 1200) if turned > 4 else (1200, 800))
    wanted = stated[0] // 8, stated[1] // 8
    _, smaller = scale(data, kind, stated, wanted)
    image = opened(smaller)
    assert image.size == wanted
    assert image.getexif().get(0x0112, 1) == 1
    corners = [(5, 5), (wanted[0] - 6, 5), (wanted[0] - 6, wanted[1] - 6), (5, wanted[1] - 6)]
    blue = {1: 0, 2: 1, 3: 2, 4: 3, 5: 0, 6: 1, 7: 2, 8: 3}[turned]
    for number, corner in enumerate(corners):
        assert near(image.convert("RGB").getpixel(corner), BLUE if number == blue else RED)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_a_picture_of_any_mode_becomes_rgb_and_keeps_transparency_where_an_engine_looks(mode: str) -> None:
    image = Image.new("I;16", (600, 400), 9) if mode == "I;16" else drawn(mode=mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    _, smaller = scale(stored(image, kind), kind, (600, 400), (150, 100))
    assert opened(smaller).mode == ("RGBA" if mode == "RGBA" else "RGB")


def test_a_photo_with_transparency_stays_without_loss() -> None:
    image = drawn()
    image.putalpha(128)
    media_type, smaller = scale(stored(image, "WEBP"), "WebP", (600, 400), (150, 100))
    assert (media_type, opened(smaller).mode) == ("image/png", "RGBA")


def test_an_unturned_picture_has_the_same_tokens_as_a_turned_one() -> None:
    """Damage can hide an orientation that its header states, from the engine as well."""
    _, smaller = scale(stored(drawn()), "PNG", (400, 600), (100, 150))
    assert opened(smaller).size == (150, 100)


def test_a_picture_that_is_not_as_large_as_its_header_says_is_refused() -> None:
    with pytest.raises(UnfitError, match="its header states 500x400 pixels, and it has 600x400"):
        scale(stored(drawn()), "PNG", (500, 400), (100, 80))


def job(data: bytes | None = None, stated: tuple[int, int] = (600, 400)) -> Job:
    return Job(stored(drawn()) if data is None else data, "PNG", stated, (150, 100))


def children() -> list[int]:
    """Processes of this one that scale."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            is_ours = entry.name.isdigit() and f"\nPPid:\t{os.getpid()}\n" in (entry / "status").read_text()
            if is_ours and b"kimi_serve.gateway.scaling.worker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


@asynccontextmanager
async def pool(workers: int = 1, memory: int = 2**30) -> AsyncIterator[Pool]:
    async with Pool(workers, 60.0, memory) as opened:
        yield opened
    assert children() == []


def test_a_pool_starts_no_more_processes_than_it_may_and_ends_them() -> None:
    async def run() -> None:
        async with pool(2) as scalers:
            assert children() == []
            results = await asyncio.gather(*(scalers.scale(job()) for _ in range(8)))
            assert len({result.data for result in results}) == 1
            assert opened(results[0].data).size == (150, 100)
            assert 1 <= len(children()) <= 2

    asyncio.run(run())


@pytest.mark.parametrize("data", [b"", b"rubbish", stored(drawn())[:300]], ids=["nothing", "rubbish", "cut"])
def test_what_cannot_be_decoded_is_refused_and_the_process_goes_on(data: bytes) -> None:
    async def run() -> None:
        async with pool() as scalers:
            with pytest.raises(ApiError, match="its pixels cannot be decoded") as refused:
                await scalers.scale(job(data))
            assert refused.value.code == "invalid_image"
            (first,) = children()
            await scalers.scale(job())
            assert children() == [first]

    asyncio.run(run())


def test_a_picture_that_needs_too_much_memory_is_refused_and_the_process_goes_on() -> None:
    large = stored(Image.new("L", (12_000, 7_000)))

    async def run() -> None:
        async with pool(memory=2**28) as scalers:
            with pytest.raises(ApiError, match="needs more than the 268435456 bytes of memory") as refused:
                await scalers.scale(job(large, (12_000, 7_000)))
            assert refused.value.code == "image_too_large"
            assert opened((await scalers.scale(job())).data).size == (150, 100)

    asyncio.run(run())


def test_a_picture_that_takes_too_long_ends_its_process_and_the_next_one_gets_another() -> None:
    async def run() -> None:
        async with pool() as scalers:
            await scalers.scale(job())
            (first,) = children()
            os.kill(first, signal.SIGSTOP)  # as one that never comes back from decoding
            scalers._timeout_s = 0.2
            with pytest.raises(ApiError, match=r"took more than the 0.2 s") as refused:
                await scalers.scale(job())
            assert refused.value.code == "image_too_large"
            assert children() == []
            scalers._timeout_s = 60.0
            await scalers.scale(job())
            assert first not in children()

    asyncio.run(run())


def test_a_picture_that_ends_its_process_is_refused_and_the_next_one_gets_another() -> None:
    async def run() -> None:
        async with pool() as scalers:
            await scalers.scale(job())
            (first,) = children()
            os.kill(first, signal.SIGSTOP)
            waiting = asyncio.ensure_future(scalers.scale(job()))
            await asyncio.sleep(0.05)
            os.kill(first, signal.SIGKILL)
            with pytest.raises(ApiError, match="end the process that decodes them"):
                await waiting
            await scalers.scale(job())

    asyncio.run(run())


def test_a_pool_that_closes_waits_for_no_picture() -> None:
    async def run() -> None:
        async with Pool(1, 600.0, 2**30) as scalers:
            await scalers.scale(job())
            os.kill(children()[0], signal.SIGSTOP)
            waiting = asyncio.ensure_future(scalers.scale(job()))
            await asyncio.sleep(0.05)
        with pytest.raises(ApiError):
            await waiting
        assert children() == []

    asyncio.run(run())


def test_a_process_knows_nothing_of_the_gateways_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIMI_SERVE_KEYS", "secret")

    async def run() -> None:
        async with pool() as scalers:
            await scalers.scale(job())
            environ = Path(f"/proc/{children()[0]}/environ").read_bytes()
            assert {one.partition(b"=")[0] for one in environ.split(b"\0") if one} == {b"PYTHONPATH"}

    asyncio.run(run())


def key(number: int) -> Key:
    return Key("", number.to_bytes(4, "big"), (1, 1))


def test_the_cache_holds_no_more_bytes_than_it_may_and_forgets_what_was_used_longest_ago() -> None:
    held = cache(4 * (1000 + 512))
    for number in range(4):
        held.put(key(number), Scaled("x" * 1000, b""))
    assert held.get(key(0)) is not None
    held.put(key(4), Scaled("y" * 1000, b""))
    assert [held.get(key(number)) is not None for number in range(5)] == [True, False, True, True, True]
    held.put(key(4), Scaled("z", b""))
    assert held.size == 3 * 1512 + 513
    held.put(key(5), Scaled("x" * 10_000, b""))
    assert held.get(key(5)) is None
    assert held.size <= 4 * 1512


def test_a_cache_of_nothing_keeps_nothing() -> None:
    held = cache(0)
    held.put(key(0), Scaled("x", b""))
    assert (held.get(key(0)), held.size) == (None, 0)
