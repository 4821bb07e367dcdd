"""The gateway's settings: one TOML file, the environment, the command line. Knows names, types and defaults only.

A setting of the environment is KIMI_SERVE_ and the path in capitals, joined by two underscores:
KIMI_SERVE_ADMISSION__REQUESTS=64. The environment wins over the file. An unknown name is refused.
KIMI_SERVE_SECRETS names a folder of mounted secrets: its file keys__redis holds the setting keys.redis.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from kimi_serve.errors import ConfigError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Listen(Section):
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on")
    settle_s: float = Field(
        default=5.0, ge=0, description="seconds after SIGTERM in which /readyz is false and requests are still taken"
    )
    grace_s: float = Field(default=30.0, ge=0, description="seconds that requests under way have to finish after that")
    connections: int = Field(default=16_384, gt=0, description="connections of clients at once")
    header_s: float = Field(default=10.0, gt=0, description="seconds in which a request's header must have arrived")
    header_bytes: int = Field(default=65_536, gt=0, description="largest header of a request, its URL included")
    keep_alive_s: float = Field(default=75.0, gt=0, description="seconds that an idle connection is kept open")
    stall_s: float = Field(
        default=60.0, gt=0, description="seconds after which a client that takes no byte of its answer counts as gone"
    )


class Replicas(Section):
    urls: tuple[str, ...] = Field(default=(), description="base URLs of the engines")
    dns: str = Field(default="", description="host:port whose every address is an engine, for a headless service")
    refresh_s: float = Field(default=10.0, gt=0, description="seconds between look-ups of the engines")
    check_s: float = Field(default=5.0, gt=0, description="seconds between health checks of an engine")
    retry_percent: int = Field(
        default=10, ge=0, le=100, description="most requests sent twice, in percent, but for those of a lost engine"
    )


class Body(Section):
    max_bytes: int = Field(default=256 * 2**20, gt=0, description="largest body of a request")
    in_flight_bytes: int = Field(default=2 * 2**30, gt=0, description="all bodies in memory together")
    in_flight_bytes_per_tenant: int = Field(default=2**30, gt=0, description="all bodies of one tenant together")
    timeout_s: float = Field(default=60.0, gt=0, description="seconds in which a body must have arrived")


class Media(Section):
    max_images: int = Field(default=512, gt=0, description="images in one prompt")
    max_bytes: int = Field(default=20 * 2**20, gt=0, description="largest picture, as a file")
    max_pixels: int = Field(default=89_478_485, gt=0, description="largest picture, width times height")
    allow_remote: bool = Field(default=True, description="whether the gateway fetches http and https URLs")
    allowed_domains: tuple[str, ...] = Field(default=(), description="only these, with their subdomains; empty: all")
    denied_domains: tuple[str, ...] = Field(default=(), description="never these; wins over allowed_domains")
    allow_private: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(), description="networks to fetch from though private"
    )
    ports: frozenset[int] = Field(default=frozenset({80, 443}), description="ports to fetch from")
    max_redirects: int = Field(default=3, ge=0, description="redirects that a fetch follows")
    max_concurrent: int = Field(default=32, gt=0, description="fetches at once")
    timeout_s: float = Field(default=10.0, gt=0, description="seconds for one fetch, with its redirects")
    file_timeout_s: float = Field(default=60.0, gt=0, description="the same for a file that may be no picture")
    low_tokens: int = Field(default=256, gt=0, description="most tokens of an image whose detail is low")
    auto_tokens: int | None = Field(
        default=None, gt=0, description="most tokens of an image whose detail is auto or not given; none: as high"
    )
    floor_tokens: int = Field(default=64, gt=0, description="tokens under which fit = downscale scales no image down")


class Scaling(Section):
    workers: int = Field(default=2, gt=0, description="processes that scale images down")
    timeout_s: float = Field(default=10.0, gt=0, description="seconds for one image, or for such a process to start")
    memory_bytes: int = Field(default=2**30, ge=2**28, description="address space of such a process")
    cache_bytes: int = Field(default=128 * 2**20, ge=0, description="scaled images that are kept for the next turn")


class Documents(Section):
    max_bytes: int = Field(default=32 * 2**20, gt=0, description="largest document, as a file")
    max_pages: int = Field(default=100, gt=0, description="pages that one document may show")
    page_tokens: int = Field(default=1024, ge=16, description="most tokens of a page's picture")
    max_dpi: int = Field(default=200, ge=18, description="resolution that no page is drawn beyond")
    max_text_chars: int = Field(default=500_000, gt=0, description="most text of a document, where it is asked for")
    cpu_s: int = Field(default=30, gt=0, description="seconds of processor time for one document")
    timeout_s: float = Field(default=45.0, gt=0, description="seconds for one document, from its start")


class Videos(Section):
    max_bytes: int = Field(default=100 * 2**20, gt=0, description="largest video, as a file")
    max_pixels: int = Field(default=4096 * 2304, gt=0, description="largest frame, width times height")
    max_duration_s: float = Field(default=3600.0, gt=0, description="longest video, in seconds")
    fps: float = Field(default=1.0, gt=0, description="frames a second, where a part does not say")
    max_frames: int = Field(default=256, gt=0, description="frames that one video may show; more are spread over it")
    frame_tokens: int = Field(default=256, ge=16, description="most tokens of a frame's picture")
    timestamp: str = Field(default="[{time}]", max_length=100, description="text before each frame; empty: none")
    cpu_s: int = Field(default=120, gt=0, description="seconds of processor time for one video")
    timeout_s: float = Field(default=120.0, gt=0, description="seconds for one video, from its start")


class WorkersSettings(Section):
    processes: int = Field(
        default=2, ge=0, description="documents and videos that are read at once; 0: none is taken, pictures are"
    )
    wait_s: float = Field(default=30.0, gt=0, description="seconds that a file waits for its turn")
    memory_bytes: int = Field(
        default=1536 * 2**20, ge=2**28, description="address space of a process, its file included"
    )
    cache_bytes: int = Field(default=128 * 2**20, ge=0, description="pages and frames that are kept for the next turn")


class Elision(Section):
    enabled: bool = Field(default=True, description="whether images that an engine holds are sent to it by name alone")
    engine_cache_gib: float = Field(
        default=4.0, ge=0, description="an engine's --mm-processor-cache-gb, where it does not say so itself"
    )
    cache_share: float = Field(
        default=0.5, gt=0, lt=1, description="share of that cache that is counted on; other gateways fill it too"
    )


class AdmissionSettings(Section):
    requests: int = Field(
        default=256,
        gt=0,
        description="most requests at one engine at once; fewer where it says that its batch is smaller",
    )
    cost: int = Field(default=1_000_000, gt=0, description="tokens of work at one engine at once, images weighted")
    waiting: int = Field(default=10_000, ge=0, description="requests that wait for an engine, all together")
    waiting_per_tenant: int = Field(default=1_000, ge=0, description="requests of one tenant that wait")
    patience_s: float = Field(
        default=1.0, gt=0, description="seconds of waiting beyond which a request is refused at once; not of class low"
    )
    deadline_s: float = Field(default=60.0, gt=0, description="seconds that a request waits at most")


class Stream(Section):
    keep_alive_s: float = Field(default=10.0, gt=0, description="silence after which a stream gets a comment")


class Upstream(Section):
    connect_s: float = Field(default=2.0, gt=0, description="seconds to connect to an engine")
    first_byte_s: float = Field(
        default=600.0, gt=0, description="seconds to an engine's first byte, queue and prefill included"
    )
    between_frames_s: float = Field(default=60.0, gt=0, description="seconds between two parts of an answer")
    total_s: float = Field(default=3600.0, gt=0, description="seconds for a whole answer")
    unreachable_s: float = Field(
        default=30.0, ge=3, description="seconds without a sign of life after which an engine's machine counts as gone"
    )
    api_key: SecretStr | None = Field(default=None, description="the key that the engines were started with")


class Keys(Section):
    file: Path | None = Field(
        default=None, description="the file of keys; without file, environment or database: no keys"
    )
    sqlite: Path | None = Field(default=None, description="the SQLite database of keys and budgets")
    postgres: SecretStr | None = Field(
        default=None, description="postgresql://user:password@host/database of keys and budgets, for several gateways"
    )
    postgres_timeout_s: float = Field(default=1.0, gt=0, description="seconds to connect, and for one statement")
    outage_s: float = Field(
        default=600.0, ge=0, description="seconds that keys already known go on while their store does not answer"
    )
    environment: bool = Field(default=False, description="read the keys from KIMI_SERVE_KEYS")
    single: SecretStr | None = Field(default=None, description="one key for everybody, in place of a store of keys")
    redis: SecretStr | None = Field(
        default=None, description="redis://host:port/db in which several gateways count together"
    )
    redis_timeout_s: float = Field(
        default=0.2, gt=0, description="seconds for one answer of Redis, connecting included; then limits are local"
    )
    redis_lease_s: int = Field(
        default=900, ge=1, description="seconds after which what a gateway that died held in Redis is given up"
    )
    salt_secret: SecretStr | None = Field(
        default=None, description="secret of the tenants' cache salts; the same everywhere"
    )


class FileSettings(Section):
    folder: Path | None = Field(
        default=None, description="folder of files and batches, for one gateway alone; without it there are none"
    )
    max_bytes: int = Field(default=512 * 2**20, gt=0, description="largest file")
    bytes_per_tenant: int = Field(default=10 * 2**30, gt=0, description="all files of one tenant together")
    count_per_tenant: int = Field(default=10_000, gt=0, description="files of one tenant")
    total_bytes: int = Field(default=100 * 2**30, gt=0, description="all files together, each counted by itself")
    timeout_s: float = Field(default=600.0, gt=0, description="seconds in which a file must have arrived")
    expire_s: float = Field(
        default=2_592_000.0, ge=0, description="seconds after which a file goes that says nothing itself; 0: never"
    )
    sweep_s: float = Field(default=60.0, gt=0, description="seconds between two removals of what has expired")


class BatchSettings(Section):
    concurrency: int = Field(default=16, gt=0, description="lines of all batches that are asked at once")
    max_lines: int = Field(default=50_000, gt=0, description="lines of one batch")
    per_tenant: int = Field(default=100, gt=0, description="batches of one tenant that have not ended")
    max_window_s: float = Field(default=604_800.0, gt=0, description="longest completion_window")
    attempts: int = Field(default=5, gt=0, description="times that a line is asked which engines fail to answer")
    retry_s: float = Field(default=1.0, gt=0, description="seconds until it is asked again, longer with every time")
    keep_s: float = Field(default=2_592_000.0, ge=0, description="seconds that a batch which ended can be looked up")


class Tracing(Section):
    endpoint: str | None = Field(
        default=None, description="where spans go by OTLP over HTTP, such as http://collector:4318/v1/traces"
    )
    sample_ratio: float = Field(
        default=1.0, ge=0, le=1, description="share of traces that begin here and are recorded; a client's own decides"
    )
    service_name: str = Field(default="kimi-serve-gateway", min_length=1, description="service.name of all spans")
    interval_s: float = Field(default=5.0, gt=0, description="seconds between two batches of spans")
    timeout_s: float = Field(default=10.0, gt=0, description="seconds to send one batch")


class Policy(Section):
    owned_fields: Literal["refuse", "strip"] = Field(
        default="refuse", description="what happens to fields clients do not own"
    )
    max_choices: int = Field(default=16, gt=0, description="largest n of a request")
    reasoning_field: Literal["reasoning_content", "reasoning"] = Field(
        default="reasoning_content", description="the name under which clients get thoughts; vLLM's own is reasoning"
    )


class PlaygroundSettings(Section):
    enabled: bool = Field(default=False, description="whether /playground, a page to try the server with, is served")


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="KIMI_SERVE_", env_nested_delimiter="__", extra="forbid", frozen=True, toml_file=None
    )

    checkpoint: Path | None = Field(
        default=None, description="folder with tiktoken.model, tokenizer_config.json and preprocessor_config.json"
    )
    listen: Listen = Listen()
    replicas: Replicas = Replicas()
    body: Body = Body()
    media: Media = Media()
    scaling: Scaling = Scaling()
    documents: Documents = Documents()
    videos: Videos = Videos()
    workers: WorkersSettings = WorkersSettings()
    elision: Elision = Elision()
    admission: AdmissionSettings = AdmissionSettings()
    stream: Stream = Stream()
    upstream: Upstream = Upstream()
    keys: Keys = Keys()
    files: FileSettings = FileSettings()
    batches: BatchSettings = BatchSettings()
    policy: Policy = Policy()
    tracing: Tracing = Tracing()
    playground: PlaygroundSettings = PlaygroundSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = TomlConfigSettingsSource(settings_cls)
        if isinstance(env_settings, EnvSettingsSource):  # KIMI_SERVE_KEYS is a store of keys, not the section
            env_settings.env_vars = {k: v for k, v in env_settings.env_vars.items() if k != "kimi_serve_keys"}
            _refuse_unknown_sections(env_settings.env_vars)
        return init_settings, env_settings, _secret_files(file_secret_settings), file


def _refuse_unknown_sections(names: Iterable[str]) -> None:
    """The source itself overlooks a section that there is not; names without `__` may belong to someone else."""
    for name in names:
        section, nested, _ = name.removeprefix("kimi_serve_").partition("__")
        if name.startswith("kimi_serve_") and nested and section not in Settings.model_fields:
            raise SettingsError(f"{name.upper()}: there is no section {section!r} of settings")


def _secret_files(unused: PydanticBaseSettingsSource) -> PydanticBaseSettingsSource:
    folder = os.environ.get("KIMI_SERVE_SECRETS")
    source = NestedSecretsSettingsSource(
        unused,
        secrets_dir=folder,
        secrets_dir_missing="error",
        secrets_prefix="",
        secrets_nested_delimiter="__",
    )
    for name in source.env_vars:  # the source itself overlooks what is in no section
        if name.partition("__")[0] not in Settings.model_fields:
            raise SettingsError(f"KIMI_SERVE_SECRETS: {folder}/{name}: there is no such setting")
    return source


def from_command_line(
    file: Path | None, engines: list[str] | None, checkpoint: Path | None, host: str | None, port: int | None
) -> Settings:
    listen = {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    given: dict[str, Any] = {"listen": listen} if listen else {}
    if engines:
        given["replicas"] = {"urls": engines}
    if checkpoint is not None:
        given["checkpoint"] = checkpoint
    return read(file, **given)


def read(file: Path | None, **given: Any) -> Settings:
    """The settings of a TOML file, the environment over it, `given` over both. Raises ConfigError."""
    if file is not None and not file.is_file():
        raise ConfigError(f"--config: {file} is not a file")

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        return FromFile(**given)
    except (ValidationError, SettingsError, TOMLDecodeError) as error:
        raise ConfigError(_sentence(error)) from None


def _sentence(error: Exception) -> str:
    """Name, value and expectation of every wrong setting; never the value of a secret."""
    if not isinstance(error, ValidationError):
        return str(error)
    said = []
    for one in error.errors(include_url=False, include_context=False):
        name = ".".join(map(str, one["loc"]))
        if one["type"] == "extra_forbidden":
            said.append(f"{name}: there is no such setting")
        else:
            value = "" if name.startswith("keys") or name.endswith("api_key") else f"{one['input']!r}: "
            said.append(f"{name}: {value}{one['msg'][0].lower()}{one['msg'][1:]}")
    return "; ".join(said)
