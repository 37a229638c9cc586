"""CUDA kernels without a GPU: compiled as plain C++ and run, and compiled for GPUs by NVRTC."""

import ctypes
import os
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

NVRTC = "nvidia-cuda-nvrtc-cu12"
HEADER = "cuda_host.h"
ARCHITECTURES = ["sm_75", "sm_80", "sm_90"]


class Host:
    """Stands in for CuPy: NumPy, and the kernels as plain C++ with a few threads a block."""

    xp = np
    threads = 5

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))

    def launch(self, name, parameters, blocks, threads, shared_floats=0):
        if not name.startswith("sinogram"):  # An event or a decay a thread.
            blocks, threads = -(-blocks * threads // self.threads), self.threads
        kernel = getattr(self.library, name)
        kernel.restype = ctypes.c_char_p
        error = kernel(ctypes.c_void_p(parameters.ctypes.data), ctypes.c_longlong(blocks), min(threads, self.threads),
                       shared_floats)  # fmt: skip
        assert error is None, f"{name}: {error.decode()}"

    def pointer(self, array):
        assert array.flags.c_contiguous
        return array.ctypes.data

    def to_host(self, array):
        return array.copy()


def compiled(source, folder, *headers):
    """Kernels as a library of plain C++, with more headers of this folder; the test is skipped without a compiler."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        pytest.skip("no C++ compiler on the PATH or in CXX: kernels are not run")
    path = folder / f"{source.stem}.so"
    includes = [part for name in (HEADER, *headers) for part in ("-include", str(Path(__file__).with_name(name)))]
    # Fused multiply-adds would give other last bits than numba's.
    subprocess.run([*compiler.split(), "-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-fPIC",
                    "-shared", *includes, "-x", "c++", str(source), "-o", str(path)], check=True)  # fmt: skip
    return path


def resources(source, architecture, *options):
    """Bytes of stack, of spill stores and of spill loads, and registers by kernel, as NVRTC compiles for an architecture."""
    try:
        path = metadata.distribution(NVRTC).locate_file("nvidia/cuda_nvrtc/lib/libnvrtc.so.12")
    except metadata.PackageNotFoundError:
        pytest.skip(f"{NVRTC} is not installed: kernels are not compiled for GPUs")
    nvrtc = ctypes.CDLL(str(path))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    options = [f"--gpu-architecture={architecture}", "--std=c++17", "--ptxas-options=-v", *options]
    name = source.name.encode()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), name, 0, None, None) == 0
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options)))
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, buffer)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    log = buffer.value.decode()
    assert not failed and "warning" not in log, log
    found = re.findall(r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
                       r".*?Used (\d+) registers", log, re.DOTALL)  # fmt: skip
    for kernel, stack, stores, loads, registers in found:
        print(f"{architecture} {kernel}: {registers} registers, {stack} bytes of stack, {stores} + {loads} spilled")
    return {kernel: tuple(map(int, numbers)) for kernel, *numbers in found}
