"""How much tenants keep here, and how much more they may. Knows sums; never a file."""

from __future__ import annotations

from dataclasses import dataclass

from kimi_serve.gateway.settings import FileSettings
from kimi_serve.protocol.errors import ApiError


@dataclass(slots=True)
class Usage:
    bytes: int = 0
    files: int = 0


class Room:
    """Exact at every moment: a file counts from its first byte, before all of it is here."""

    def __init__(self, rules: FileSettings) -> None:
        self._rules = rules
        self._by_tenant: dict[str, Usage] = {}
        self.total = Usage()

    def of(self, tenant: str) -> Usage:
        return self._by_tenant.get(tenant) or Usage()

    def add(self, tenant: str, size: int, files: int) -> None:
        """Without a question: what is here already, what goes (negative), and what must not be lost."""
        usage = self._by_tenant.setdefault(tenant, Usage())
        for one in (usage, self.total):
            one.bytes += size
            one.files += files
        if not usage.files and not usage.bytes:
            del self._by_tenant[tenant]

    def require(self, tenant: str, held: int, size: int, files: int = 0) -> None:
        """Raises ApiError where `size` more bytes of a file that has `held` already, or so many files, are too many."""
        rules, usage = self._rules, self.of(tenant)
        if held + size > rules.max_bytes:
            raise ApiError("file_too_large", f"file: it exceeds the limit of {rules.max_bytes} bytes", param="file")
        if usage.files + files > rules.count_per_tenant:
            raise _over(f"{usage.files} files are kept for this key, the most that are; delete some")
        if usage.bytes + size > rules.bytes_per_tenant:
            raise _over(f"this key's files would exceed {rules.bytes_per_tenant} bytes; delete some")
        if self.total.bytes + size > rules.total_bytes:
            raise full()


def full() -> ApiError:
    return ApiError("files_full", "the space for files is used up; retry later", retry_after=60.0)


def _over(message: str) -> ApiError:
    return ApiError("file_quota_exceeded", message)
