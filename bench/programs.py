"""Installers and fio: programs that are not everywhere, fed with packages made here.

1. Nothing is fetched: wheels and npm tarballs are made from the seed, once a run, and installed
   with the network switched off. They are as many and as small as those of a usual project.
2. A program that is missing leaves its scenario out, for all targets, with the reason.

Run by bench.child; bench.runner asks `missing` and `make`.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import random
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench import material
from bench.workloads import Job, Stopwatch

FILES_PER_WHEEL: Final = 40
FILES_PER_MODULE: Final = 8


def missing(scenario: str) -> str | None:
    """Why it can't run here; None when it can."""
    if scenario == "pip" and importlib.util.find_spec("pip") is None:
        return "this interpreter has no pip"
    if scenario == "npm" and shutil.which("npm") is None:
        return "npm is not installed"
    if scenario == "fio" and shutil.which("fio") is None:
        return "fio is not installed"
    return None


def make(base: Path, scenario: str, seed: int, count: int) -> None:
    """What the scenario installs: `count` packages below `base`."""
    if scenario == "pip":
        (base / "wheels").mkdir()
        for number in range(count):
            _wheel(base / "wheels", random.Random(seed + number), number)
    if scenario == "npm":
        (base / "npm" / "packages").mkdir(parents=True)
        _npm(base / "npm", seed, count)


def _sources(rng: random.Random, count: int) -> list[bytes]:
    """Python that compiles (and is JavaScript's business no more than a comment is)."""
    made = []
    for number in range(count):
        text = material.words(rng, min(64 * 1024, int(rng.lognormvariate(7.8, 1.0)) + 1))
        lines = [b"# " + line for line in text.splitlines()]
        made.append(b"\n".join([*lines, b"value = %d" % number, b""]))
    return made


def _wheel(directory: Path, rng: random.Random, number: int) -> None:
    name = f"benchpkg{number}"
    info = f"{name}-1.0.dist-info"
    files = {f"{name}/m{n}.py": body for n, body in enumerate(_sources(rng, FILES_PER_WHEEL))}
    files[f"{name}/__init__.py"] = b""
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    lines = []
    for path, body in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(body)}\n")
    files[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"]).encode()
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, body in files.items():
            archive.writestr(path, body)


def _npm(base: Path, seed: int, count: int) -> None:
    """package.json and package-lock.json, all of whose packages are tarballs beside them."""
    wanted, locked = {}, {}
    for number in range(count):
        rng = random.Random(seed + number)
        name = f"bench-pkg-{number}"
        files = {
            f"lib/m{n}.js": b"/*\n" + body + b"*/\n"
            for n, body in enumerate(_sources(rng, FILES_PER_MODULE))
        }
        files["package.json"] = json.dumps({"name": name, "version": "1.0.0"}).encode()
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w:gz") as archive:
            for path, body in files.items():
                entry = tarfile.TarInfo(f"package/{path}")
                entry.size, entry.mode = len(body), 0o644
                archive.addfile(entry, io.BytesIO(body))
        (base / "packages" / f"{name}.tgz").write_bytes(raw.getvalue())
        place = f"file:../packages/{name}.tgz"
        digest = base64.b64encode(hashlib.sha512(raw.getvalue()).digest()).decode()
        wanted[name] = place
        locked[f"node_modules/{name}"] = {
            "version": "1.0.0",
            "resolved": place,
            "integrity": f"sha512-{digest}",
        }
    root = {"name": "bench", "version": "1.0.0", "dependencies": wanted}
    lock = {
        "name": "bench",
        "version": "1.0.0",
        "lockfileVersion": 3,
        "requires": True,
        "packages": {"": root, **locked},
    }
    (base / "package.json").write_text(json.dumps(root))
    (base / "package-lock.json").write_text(json.dumps(lock))


def pip(job: Job, watch: Stopwatch) -> None:
    """`pip install` of all wheels into a directory, modules compiled as pip does."""
    root = Path(job.directory)
    wheels = sorted(str(path) for path in Path(job.material, "wheels").iterdir())
    command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check"]
    command += ["install", "--quiet", "--no-index", "--no-cache-dir", "--root-user-action=ignore"]
    with watch.step("pip", len(wheels)):
        material.run_quietly([*command, "--target", str(root / "site"), *wheels], root)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".py") and (root / "site" / name).read_bytes() != archive.read(
                    name
                ):
                    raise RuntimeError(f"{name} is not what the wheel holds")


def npm(job: Job, watch: Stopwatch) -> None:
    """`npm ci` of all packages, offline. Ours keeps node_modules in the cache alone (a default)."""
    project = Path(job.directory, "project")
    project.mkdir()
    source = Path(job.material, "npm")
    for name in ("package.json", "package-lock.json"):
        text = (source / name).read_text().replace("file:../packages/", f"file:{source}/packages/")
        (project / name).write_text(text)
    cache = Path(job.material, "npm-cache")
    command = ["npm", "ci", "--offline", "--ignore-scripts", "--no-audit", "--no-fund"]
    command += ["--no-update-notifier", "--cache", str(cache), "--userconfig", "/dev/null"]
    with watch.step("npm", len(list((source / "packages").iterdir()))):
        material.run_quietly(command, project)
    for packed in (source / "packages").iterdir():
        with tarfile.open(packed) as archive:
            for member in archive:
                body = archive.extractfile(member)
                path = project / "node_modules" / packed.stem / member.name.removeprefix("package/")
                if body is None or path.read_bytes() != body.read():
                    raise RuntimeError(f"{path.name} is not what its package holds")


def fio(job: Job, watch: Stopwatch) -> None:
    """fio: 4 KiB at random places, one fsync at the end; fio itself checks what it wrote."""
    root = Path(job.directory)
    size_mib, count = job.scale.random_file_mib, job.scale.random_ops
    options = ["--name=bench", "--filename=fio.dat", "--bs=4k", "--ioengine=psync"]
    options += [f"--size={size_mib}m", "--output-format=json", f"--randseed={job.seed}"]
    material.run_quietly(["fio", *options, "--rw=write", "--end_fsync=1"], root)
    options += ["--rw=randwrite", f"--number_ios={count}", "--norandommap"]
    raw = material.run_quietly(["fio", *options, "--end_fsync=1", "--overwrite=1"], root)
    # fio's own clock: starting the program is not the filesystem's matter.
    job_said = json.loads(raw)["jobs"][0]
    write = job_said["write"]
    if write["total_ios"] != count:
        raise RuntimeError(f"fio wrote {write['total_ios']} blocks of {count}")
    # In whole milliseconds.
    watch.add("fio", max(1, job_said["job_runtime"]) / 1000, count)


PROGRAMS: Final[dict[str, Callable[[Job, Stopwatch], None]]] = {"pip": pip, "npm": npm, "fio": fio}
