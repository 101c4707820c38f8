"""Builds a ``.cu`` file as host C++ and calls its kernels with NumPy arrays.

The file is compiled unchanged but for ``extern __shared__`` declarations, which must stand inside a function.
Builds are cached by content under ``NIGHTSTREAM_SHIM_CACHE`` (default: the temporary folder) and may run
concurrently.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nightstream.kernels import target

HERE = Path(__file__).parent
HEADER = HERE / "cuda_cpu_shim.h"
COMPILER = "g++"
# No contraction and no fast-math: + - * / sqrt round as on the device with --fmad=false.
FLAGS = ("-O2", "-std=c++17", "-fopenmp", "-ffp-contract=off", "-fno-fast-math", "-fwrapv", "-w")
ADDRESS_CHECKS = ("-fsanitize=address", "-fno-omit-frame-pointer")
SANITIZED = ("-O1", "-g", "-std=c++17", "-ffp-contract=off", *ADDRESS_CHECKS, "-w")

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?void\s+'
    r"(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)",
    re.S,
)
FUNCTION = re.compile(r"(\w+)\s*\([^(){};]*\)\s*\{")
DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+(?:__align__\s*\(\s*\d+\s*\)\s*)?([\w\s]*\w)\s+(\w+)\s*\[\s*\]\s*;")
BARRIER = re.compile(r"__sync(?:threads|warp)\b|__\w+_sync\b")

C_TYPES = {
    "bool": np.bool_,
    "char": np.int8,
    "signed char": np.int8,
    "unsigned char": np.uint8,
    "short": np.int16,
    "unsigned short": np.uint16,
    "int": np.int32,
    "unsigned": np.uint32,
    "unsigned int": np.uint32,
    "long long": np.int64,
    "unsigned long long": np.uint64,
    "float": np.float32,
    "double": np.float64,
}


class Parameter(NamedTuple):
    """One kernel parameter: C text, name, NumPy type, and whether it is a pointer to that type."""

    text: str
    name: str
    dtype: np.dtype
    is_pointer: bool

    @classmethod
    def parse(cls, text: str) -> Parameter:
        """Read ``const float* __restrict__ image`` or ``int ny``."""
        text = " ".join(text.split())
        name = re.search(r"(\w+)$", text)[1]
        base = re.sub(r"\b(const|volatile|__restrict__|restrict)\b|\*", " ", text[: -len(name)])
        base = " ".join(base.split())
        if base not in C_TYPES:
            raise TypeError(f"kernel parameter {text!r}: type {base!r} is none of {', '.join(C_TYPES)}")
        return cls(text, name, np.dtype(C_TYPES[base]), "*" in text)

    def accepts(self, value) -> bool:
        """Whether ``value`` is what CuPy has to pass: an array or NumPy scalar of the very same type."""
        same = value.dtype == self.dtype or {value.dtype.str, self.dtype.str} == {"|b1", "|u1"}
        return same and self.is_pointer == isinstance(value, np.ndarray)

    def to_ctypes(self, value):
        """Wrap an accepted value for the call."""
        if self.is_pointer:
            return ctypes.c_void_p(value.ctypes.data)
        return np.ctypeslib.as_ctypes_type(self.dtype)(value.item())


class Signature(NamedTuple):
    """A kernel's name and parameters as its ``.cu`` file states them."""

    name: str
    parameters: tuple[Parameter, ...]

    def check(self, args: tuple) -> None:
        """Raise TypeError unless ``args`` agree with the parameters in number, kind and type."""
        if len(args) != len(self.parameters):
            wanted = len(self.parameters)
            raise TypeError(f"{self.name}: got {len(args)} arguments, the .cu kernel takes {wanted}")
        for position, (parameter, value) in enumerate(zip(self.parameters, args, strict=True)):
            if not parameter.accepts(value):
                got = f"{type(value).__name__} of {value.dtype}"
                wanted = f"the .cu kernel takes {parameter.text!r}"
                raise TypeError(f"{self.name}: argument {position} is {got}, {wanted}")


def signatures(source: str) -> dict[str, Signature]:
    """Find every ``extern "C" __global__`` kernel of a source text."""
    found = {}
    for name, text in KERNEL.findall(COMMENT.sub(" ", source)):
        parameters = filter(str.strip, text.split(","))
        found[name] = Signature(name, tuple(map(Parameter.parse, parameters)))
    return found


def _function_bodies(text: str) -> dict[str, str]:
    """Split comment-free source into ``{function: body}`` by matching braces."""
    bodies, position = {}, 0
    while match := FUNCTION.search(text, position):
        depth, end = 1, match.end()
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        bodies[match[1]] = text[match.end() : end]
        position = end
    return bodies


def kernels_with_barriers(text: str) -> set[str]:
    """Names of the functions that wait for other threads, directly or through what they call."""
    bodies = _function_bodies(COMMENT.sub(" ", text))
    waiting = {name for name, body in bodies.items() if BARRIER.search(body)}
    while True:
        calls = re.compile(r"\b(?:" + "|".join(waiting or {"(?!)"}) + r")\b")
        more = {name for name, body in bodies.items() if name not in waiting and calls.search(body)}
        if not more:
            return waiting
        waiting |= more


def _wrapper(signature: Signature) -> str:
    parameters = "".join(f", {p.text}" for p in signature.parameters)
    names = ", ".join(p.name for p in signature.parameters)
    return (
        f'extern "C" void launch_{signature.name}'
        f"(const unsigned* g_, const unsigned* b_, size_t s_, int f_, int o_{parameters})"
        f" {{ cudashim::launch(g_, b_, s_, f_, o_, [=]() {{ {signature.name}({names}); }}); }}\n"
    )


def _host_source(path: Path) -> str:
    """The C++ text to compile: the shim, the file with its own line numbers, and one launcher a kernel."""
    source = path.read_text()
    dynamic = r"\1* \2 = (\1*)cudashim::dynamic_shared.data();"
    wrappers = "".join(map(_wrapper, signatures(source).values()))
    return f'#include "{HEADER.name}"\n#line 1 "{path}"\n{DYNAMIC_SHARED.sub(dynamic, source)}\n{wrappers}'


def _build(path: Path, flags: tuple[str, ...]) -> Path:
    """Compile to a shared library named after the content of all that goes in; reuse one that is there."""
    code = _host_source(path)
    headers = [HEADER, *sorted(path.parent.glob("*.cuh"))]
    content = "\0".join([code, *flags, *(h.read_text() for h in headers)])
    default = Path(tempfile.gettempdir()) / f"cudashim-{os.getuid()}"
    folder = Path(os.environ.get("NIGHTSTREAM_SHIM_CACHE", default))
    library = folder / f"{path.stem}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            cpp, made = Path(work) / f"{path.stem}.cpp", Path(work) / library.name
            cpp.write_text(code)
            _compile([COMPILER, "-shared", "-fPIC", *flags, f"-I{HERE}", f"-I{path.parent}", cpp, "-o", made])
            os.replace(made, library)  # appears complete or not at all, whoever else builds it
    return library


def _compile(command: list) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{COMPILER} failed:\n{done.stderr[-4000:]}")


class HostModule:
    """The kernels of one ``.cu`` file, compiled for the CPU."""

    def __init__(self, path: Path, flags: tuple[str, ...] = FLAGS) -> None:
        text = path.read_text() + "".join(h.read_text() for h in sorted(path.parent.glob("*.cuh")))
        self.signatures = signatures(path.read_text())
        self._waiting = kernels_with_barriers(text)
        self._library = ctypes.CDLL(str(_build(path, flags)))

    def launch(self, name: str, grid, block, args: tuple, *, shared_bytes: int = 0, order: int = 0) -> None:
        """Run kernel ``name`` with its threads in forward (0), reverse (1) or shuffled (2 up) ``order``."""
        if name not in self.signatures:
            raise TypeError(f"no kernel {name!r}; the .cu file has {', '.join(self.signatures)}")
        signature = self.signatures[name]
        signature.check(args)
        extents = [(ctypes.c_uint * 3)(*d, *(1,) * (3 - len(d))) for d in (grid, block)]
        threads = int(np.prod(block))
        if not 0 < threads <= 1024:
            raise ValueError(f"{name}: block {block} has {threads} threads, a device takes 1 to 1024")
        values = [p.to_ctypes(v) for p, v in zip(signature.parameters, args, strict=True)]
        plan = (ctypes.c_size_t(shared_bytes), ctypes.c_int(name in self._waiting), ctypes.c_int(order))
        getattr(self._library, f"launch_{name}")(*extents, *plan, *values)


@functools.cache
def load(path: Path, flags: tuple[str, ...] = FLAGS) -> HostModule:
    """Compile ``path`` (once a process) and return its kernels."""
    return HostModule(Path(path), flags)


def has_compiler() -> bool:
    """Whether g++ is there."""
    return shutil.which(COMPILER) is not None


def cuda_path(source: str) -> Path:
    """Where ``kernels/cuda/<source>.cu`` lies."""
    return Path(str(resources.files("nightstream.kernels.cuda") / f"{source}.cu"))


@contextmanager
def host_cuda(order: int = 0, flags: tuple[str, ...] = FLAGS):
    """Within the context every `target.HotLoop` runs its ``.cu`` twin on the CPU, built with ``flags``."""

    def run(loop, launch, args) -> None:
        kernels = load(cuda_path(loop.source), flags)
        shared = launch.shared_bytes
        kernels.launch(loop.name, launch.grid, launch.block, args, shared_bytes=shared, order=order)

    with target.host_runner(run):
        yield
