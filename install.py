"""Install requirements.lock into .venv with the Python that
runs this file; its standard library is all it needs.

    python install.py [--torch BUILD]    # or: make .venv/installed [PYTHON=...] [TORCH=...]
    python install.py lock               # or: make lock

The environment is made anew and holds what the lock names and nothing else, each package checked against its
hash. It counts as installed once `.venv/installed` says from what, so that an installation cut off in the
middle is done again.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import venv
from pathlib import Path
from urllib.parse import urljoin

ROOT = Path(__file__).resolve().parent
REQUIREMENTS = ROOT / "requirements.txt"
LOCK = ROOT / "requirements.lock"
VENV = ROOT / ".venv"
INSTALLED = VENV / "installed"

PYPI = "https://pypi.org/simple"
PYTORCH = "https://download.pytorch.org/whl"

# GiB with PyPI's build of torch; pip keeps its downloads beside the environment until it has unpacked them.
DOWNLOAD = 3.1
DISK = 6.4
TORCH_BUILD = re.compile(r"pypi|cpu|cu\d{3}|rocm\d+(\.\d+)*")
# Packages of the lock that come with torch's build, and with another one are others or none.
TORCH_PACKAGES = re.compile(r"(torch|torchvision|triton|cuda-.*|nvidia-(?!ml-py).*)")
# An environment of one's own must not reach into this one (Colab sets PYTHONPATH).
FOREIGN = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "UV_SYSTEM_PYTHON"}


class InstallError(Exception):
    """One line: what is wrong and what to do."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", nargs="?", choices=["install", "lock"], default="install")
    parser.add_argument(
        "--torch", metavar="BUILD", default="", help="pypi (CUDA, the default), cpu, cu126, ..."
    )
    arguments = parser.parse_args()
    try:
        if arguments.command == "lock":
            lock()
        else:
            install(arguments.torch)
    except (InstallError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("error: cut off; the same command begins again")


def install(torch: str) -> None:
    """Make .venv as requirements.lock asks, unless it was made so before.

    torch: "pypi", or the name of a build on PyTorch's own
    index; "" for the build that is there, PyPI's at first.
    """
    before = read_record()
    torch = torch or before.get("torch", "pypi")
    if not TORCH_BUILD.fullmatch(torch):
        raise InstallError(f"TORCH={torch}: no build of torch; give pypi, cpu, or CUDA's version as in cu126")
    record = {
        "lock": hashlib.sha256(LOCK.read_bytes()).hexdigest(),
        "python": "{}.{}".format(*sys.version_info),
        "torch": torch,
    }
    if before == record:
        INSTALLED.touch()  # the lock's file is newer and says the same: make need not ask again
        return

    entries = read_lock()
    uv = shutil.which("uv")
    if torch == "pypi":
        check_disk(DISK if uv else DISK + DOWNLOAD)
        size = f"{DOWNLOAD} GiB to download, {DISK} GiB on the disk, a few minutes"
    else:
        size = f"with the {torch} build of torch"
    print(
        f"installing {LOCK.name} into .venv, Python {record['python']}, by {'uv' if uv else 'pip'}: {size}",
        flush=True,
    )
    make_environment()
    installer = [uv, "pip", "install", "--python", str(VENV / "bin/python")] if uv else run_pip(entries)

    # 1) setuptools by itself: it builds the two packages that
    # are published as source only, so that nothing unlocked runs
    run_installer(installer, [entries["setuptools"]], ["--require-hashes", "--no-deps"])
    # 2) the lock; it names every package, so that dependencies are not looked for
    locked = [
        entry for name, entry in entries.items() if torch == "pypi" or not TORCH_PACKAGES.fullmatch(name)
    ]
    run_installer(installer, locked, ["--require-hashes", "--no-deps", "--no-build-isolation"])
    # 3) another build of torch, in the lock's version, with the
    # libraries that it asks for; the lock has no hash of it
    if torch != "pypi":
        pins = [f"{pin(entries[name])}+{torch}" for name in ("torch", "torchvision")]
        run_installer(installer, pins, ["--index-url", f"{os.environ.get('TORCH_INDEX', PYTORCH)}/{torch}"])
    write_record(record)


def make_environment() -> None:
    """An empty .venv, without the pip and ensurepip that Debian and Ubuntu keep in a package of their own."""
    if VENV.is_symlink():
        raise InstallError(
            f".venv is a link to {VENV.resolve()}, which would be emptied; remove the link first"
        )
    INSTALLED.unlink(missing_ok=True)  # first: from here on nothing is installed until all is
    venv.EnvBuilder(clear=True, symlinks=True, with_pip=False).create(VENV)


def check_disk(needed: float) -> None:
    free = shutil.disk_usage(ROOT).free / 2**30
    if not VENV.exists() and free < needed:
        raise InstallError(
            f"installing takes {needed:.1f} GiB and {free:.1f} are free here: make room, or add TORCH=cpu"
        )


def run_pip(entries: dict[str, str]) -> list[str]:
    """The command `pip install` of the new environment: pip's wheel, which Python runs as it lies."""
    wheel = fetch_pip(entries, VENV)
    # Without --no-compile pip compiles 40,000 files of which a
    # run imports few; Python compiles those as it imports them.
    return [
        str(VENV / "bin/python"),
        str(wheel / "pip"),
        "install",
        "--no-compile",
        "--disable-pip-version-check",
    ]


def fetch_pip(entries: dict[str, str], folder: Path) -> Path:
    """Download the wheel of the lock's pip from PyPI, or from
    the index that PIP_INDEX_URL names; compare its hash.
    """
    wheel = folder / f"{pin(entries['pip']).replace('==', '-')}-py3-none-any.whl"
    index = os.environ.get("PIP_INDEX_URL", PYPI).rstrip("/") + "/pip/"
    try:
        page = download(index).decode()
        link = re.search(rf'href="((?:[^"]*/)?{re.escape(wheel.name)})[#"]', page)
        if not link:
            raise InstallError(f"{index} has no {wheel.name}")
        content = download(urljoin(index, link[1]))
    except urllib.error.URLError as error:
        raise InstallError(
            f"pip can't be fetched from {index} ({error.reason}): check the network, a proxy (HTTPS_PROXY), "
            "certificates (apt install ca-certificates, or SSL_CERT_FILE)"
        ) from error
    if f"sha256:{hashlib.sha256(content).hexdigest()}" not in entries["pip"]:
        raise InstallError(
            f"{wheel.name} from {index} has not the hash that {LOCK.name} names: nothing is installed"
        )
    wheel.write_bytes(content)
    return wheel


def download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as response:
        return response.read()


def run_installer(installer: list[str], requirements: list[str], options: list[str]) -> None:
    """Install `requirements` (lines of a requirements file),
    and say what is large or slow while it goes on.
    """
    asked = VENV / "requirements.txt"
    asked.write_text("\n".join(requirements) + "\n")
    scratch = VENV / "tmp"  # on the environment's own disk: /tmp is often a small one in memory
    scratch.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    environment["TMPDIR"] = str(scratch)
    output = []
    with subprocess.Popen(
        [*installer, *options, "-r", str(asked)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as process:
        for line in process.stdout:
            output.append(line)
            if progress(line):
                print(" ", progress(line), flush=True)
    if process.returncode:
        print("".join(output[-15:]), file=sys.stderr)
        raise InstallError(
            "the installation broke off, see above; run the same command again once that is mended"
        )
    shutil.rmtree(scratch)
    asked.unlink()


def progress(line: str) -> str:
    """What a line of pip or uv says of a download of 100 MB and
    more, or of the steps after it; nothing of other lines.
    """
    download = re.match(r"\s*Downloading (\S+) \((\d{3,})[.\d]* ?(Mi?B)\)", line)
    if download:
        name = re.split(r"-(?:cp|py)\d", download[1])[0]  # without the tags of a wheel's name
        return f"downloading {name}, {download[2]} {download[3]}"
    if line.startswith(("Building wheels", "Installing collected", "Prepared", "Installed")):
        return line.partition(":")[0].strip()
    return ""


def read_lock() -> dict[str, str]:
    """The lock's entries by name: version, condition and hashes, without the comments between them."""
    lines = [
        line for line in LOCK.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    entries = re.split(r"\n(?=\S)", "\n".join(lines))
    return {entry.partition("==")[0]: entry for entry in entries}


def pin(entry: str) -> str:
    """Name and version of an entry, as in `torch==2.14.1`."""
    return entry.split()[0]


def read_record() -> dict[str, str]:
    """What .venv was made from, or nothing where no installation came to its end."""
    if not INSTALLED.is_file():
        return {}
    return dict(line.split(maxsplit=1) for line in INSTALLED.read_text().splitlines())


def write_record(record: dict[str, str]) -> None:
    lines = [f"{name} {value}\n" for name, value in record.items()]
    INSTALLED.write_text("".join(lines))


def lock() -> None:
    """Renew requirements.lock from requirements.txt: what still fits
    keeps its version; without its lines, it gets the newest.
    """
    options = "--quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes"
    with tempfile.TemporaryDirectory() as folder:
        excluded = Path(folder) / "excluded.txt"
        # Runs in a browser alone (httpx2, for huggingface_hub); its Pythons
        # would split the lock into one for 3.11 and one for the others.
        excluded.write_text("httpx2-jsfetch\n")
        uv = shutil.which("uv") or fetch_uv(Path(folder))
        command = [uv, "pip", "compile", *options.split(), "--excludes", str(excluded)]
        command += ["--custom-compile-command", "make lock", REQUIREMENTS.name, "--output-file", LOCK.name]
        if subprocess.run(command, cwd=ROOT).returncode:
            raise InstallError("uv could not renew requirements.lock, see above")


def fetch_uv(folder: Path) -> str:
    """uv, from PyPI by the pip that the lock names."""
    pip = [sys.executable, str(fetch_pip(read_lock(), folder) / "pip")]
    command = [
        *pip,
        "install",
        "--quiet",
        "--root-user-action",
        "ignore",
        "--target",
        str(folder / "uv"),
        "uv",
    ]
    if subprocess.run(command).returncode:
        raise InstallError("uv can't be fetched, see above; install it by hand and run make lock again")
    return str(folder / "uv/bin/uv")


if __name__ == "__main__":
    main()
