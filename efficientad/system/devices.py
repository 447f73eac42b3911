"""The device and precision to compute with, and the host's memory."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from efficientad.system.errors import UserError

_AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The torch device for --device auto, cpu, cuda, cuda:N or mps; a GPU with a number becomes the current one.

    Raises:
        UserError: torch sees no such GPU, or the name is none of these.
    """
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", str(name)) is None:
        raise UserError(f"device {name!r} is none of auto, cpu, cuda, cuda:N and mps")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("--device mps: torch sees no GPU of Apple here; use --device cpu")
        return torch.device(name)
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        reason = "this torch was built without CUDA" if torch.version.cuda is None else "torch sees no CUDA GPU"
        raise UserError(f"--device {name}: {reason}; use --device cpu or check the driver with nvidia-smi")
    device = torch.device("cuda" if name == "auto" else name)
    if device.index is not None:
        count = torch.cuda.device_count()
        if device.index >= count:
            there = "1 GPU: cuda:0" if count == 1 else f"{count} GPUs: cuda:0 to cuda:{count - 1}"
            raise UserError(f"--device {name}: this machine has {there}")
        torch.cuda.set_device(device)  # what does not name a device means this one: streams, events, Triton
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """The precision for --precision auto, fp32, bf16 or fp16: "auto" takes bf16 only where it is faster.

    Choosing fp32 on a GPU turns TF32 off, in which torch computes convolutions by default.

    Raises:
        UserError: fp16 on a CPU, where training would not converge and nothing is gained; or another than fp32 on
            a GPU of Apple, where nobody has tried it.
    """
    if name not in ("auto", "fp32", "bf16", "fp16"):
        raise UserError(f"precision {name!r} is none of auto, fp32, bf16 and fp16")
    if device.type == "mps":
        if name not in ("auto", "fp32"):
            raise UserError(f"--precision {name}: --device mps computes in fp32; leave it out")
        return "fp32"
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a CUDA GPU; on a CPU use bf16 or fp32")
    if name == "auto":
        name = "bf16" if _has_fast_bf16(device) else "fp32"
    if name == "fp32" and device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return name


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere; older cards emulate it
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The autocast context of a resolved precision; does nothing for fp32."""
    dtype = _AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def compute_deterministically() -> None:
    """Make a CUDA GPU give the same output for the same input, too; torch warns where it cannot.

    The bilinear upsampling of the autoencoder has no deterministic gradient on a GPU; torch then takes another,
    slower implementation.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)


def describe_device(device: torch.device, precision: str) -> str:
    """Device and precision in words, as in "device cuda (NVIDIA H200), precision bf16"; warns if that is slow."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    elif device.type == "mps":
        hardware = platform.machine()
    else:
        hardware = f"{platform.machine()}, {torch.get_num_threads()} threads"
    slow = precision == "bf16" and not _has_fast_bf16(device)
    warning = " (not native to this hardware: expect it to be far slower than fp32)" if slow else ""
    return f"device {device} ({hardware}), precision {precision}{warning}"


def fitting_device(device: torch.device) -> torch.device:
    """Where to fit what needs float64 or rare operations: the device, but for a GPU of Apple, which lacks them."""
    return torch.device("cpu") if device.type == "mps" else device


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, keep freed memory for the next step.

    Otherwise every large block goes back to the system and returns page by page, filled with zeros, which takes a
    fifth of a training step of batch size 16.
    """
    set_option = _from_glibc("mallopt")
    if device.type == "cpu" and set_option:
        set_option(_M_MMAP_MAX, 0)
        set_option(_M_TRIM_THRESHOLD, -1)


def release_freed_memory() -> None:
    """Give the memory kept so far back to the system."""
    release = _from_glibc("malloc_trim")
    if release:
        release(0)


def _from_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if platform.system() == "Linux" else None
