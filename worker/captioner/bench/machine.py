"""What a measurement was made on and with: without it a number says nothing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import redis

from captioner.bench.tables import server_version
from captioner.cores import available_cores
from captioner.errors import BrokerUnavailableError
from captioner.settings import Settings

_CPU_INFO = Path("/proc/cpuinfo")


def describe_hardware() -> dict[str, Any]:
    """The machine, and how busy it was before the measurement."""
    return {
        "cpu": _cpu_name(),
        # Not the machine's: those that this process gets.
        "cores": available_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": round(os.getloadavg()[0], 2),
    }


def describe_versions(settings: Settings) -> dict[str, str]:
    """Of everything that a rate depends on.

    Raises:
        BrokerUnavailableError: Redis cannot be reached.
        StoreUnavailableError: the database server cannot be reached.
    """
    with redis.Redis.from_url(settings.broker_url) as client:
        try:
            server: dict[str, Any] = client.info("server")
        except redis.RedisError as error:
            raise BrokerUnavailableError.because_of(error) from error
    return {
        "captioner": version("captioner"),
        "python": platform.python_version(),
        "celery": version("celery"),
        "kombu": version("kombu"),
        "redis": str(server["redis_version"]),
        "postgresql": server_version(settings.database_url),
    }


def _cpu_name() -> str:
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
