"""Installing without pip: which Python is taken, what is
installed by what, and what an interruption leaves behind.
"""

import functools
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import ROOT

PIP = re.search(r"^pip==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)[1]

# Stands for pip and uv: notes its arguments and the requirements
# that it is given; fails where a file `broken` lies.
RECORDER = """
import json, os, pathlib, sys
arguments = sys.argv[1:]
given = pathlib.Path(arguments[arguments.index("-r") + 1]).read_text()
call = {"by": NAME, "arguments": arguments, "given": given, "pythonpath": os.environ.get("PYTHONPATH")}
with open("calls", "a") as file:
    file.write(json.dumps(call) + "\\n")
if os.path.exists("broken"):
    sys.exit("ERROR: No space left on device")
"""

LOCK = """# made by make lock
pip=={pip} \\
    --hash=sha256:{hash}
    # via -r requirements.txt
dvclive==1.0 \\
    --hash=sha256:11
nvidia-cublas==3.0 ; sys_platform == 'linux' \\
    --hash=sha256:22
nvidia-ml-py==4.0 \\
    --hash=sha256:33
    # via dvclive
setuptools==5.0 \\
    --hash=sha256:44
torch==2.0 \\
    --hash=sha256:55 \\
    --hash=sha256:66
torchvision==0.2 \\
    --hash=sha256:77
"""


@pytest.fixture
def index(tmp_path):
    """A package index of this machine that has one wheel: a pip that notes how it is called."""
    folder = tmp_path / "index/simple/pip"
    folder.mkdir(parents=True)
    wheel = folder / f"pip-{PIP}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("pip/__main__.py", f"NAME = 'pip'\n{RECORDER}")
    (folder / "index.html").write_text(f'<a href="{wheel.name}#sha256=0">{wheel.name}</a>')

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path / "index")
    )
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield SimpleNamespace(
        url=f"http://127.0.0.1:{server.server_port}/simple",
        hash=hashlib.sha256(wheel.read_bytes()).hexdigest(),
    )
    server.shutdown()


@pytest.fixture
def clone(tmp_path, index):
    """A folder with the Makefile, install.py and a small lock, whose pip is the index's."""
    folder = tmp_path / "clone"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "install.py", folder)
    (folder / "requirements.lock").write_text(LOCK.format(pip=PIP, hash=index.hash))
    return folder


def install(
    clone: Path, index, *arguments: str, path: str = "/usr/bin:/bin", **env
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "install.py", *arguments],
        cwd=clone,
        capture_output=True,
        text=True,
        env={"PATH": path, "PIP_INDEX_URL": index.url, **env},
    )


def calls(clone: Path) -> list[dict]:
    return [json.loads(line) for line in (clone / "calls").read_text().splitlines()]


def given(call: dict) -> list[str]:
    """Names of the packages that a call was given."""
    return re.findall(r"^(\S+?)==", call["given"], re.MULTILINE)


def write_script(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def write_python(path: Path, python: tuple[int, int]) -> None:
    """A Python of another version, as far as the Makefile asks; it says so instead of running a script."""
    written = ".".join(map(str, python))
    write_script(
        path,
        f"""#!/bin/sh
case "$1" in
  --version) echo Python {written}.1 ;;
  -c) exec {sys.executable} -c 'import sys; sys.version_info = {(*python, 1)}; exec(sys.argv[1])' "$2" ;;
  *) echo "Python {written} runs $@" ;;
esac
""",
    )


def make(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """`make`, where the only Pythons are those in the folder `bin`."""
    for tool in ("make", "sh", "grep"):
        if not (clone / "bin" / tool).exists():
            (clone / "bin").mkdir(exist_ok=True)
            (clone / "bin" / tool).symlink_to(shutil.which(tool))
    return subprocess.run(
        ["make", *arguments],
        cwd=clone,
        capture_output=True,
        text=True,
        env={"PATH": str(clone / "bin"), **environment},
    )


@pytest.mark.parametrize("python", [(2, 7), (3, 10), (3, 15)])
def test_a_python_too_old_or_too_new_gets_one_line(clone, python):
    write_python(clone / "bin/python3", python)
    done = make(clone, ".venv/installed")
    assert done.returncode
    line, _ = done.stderr.splitlines()  # the second is make's own
    assert line.startswith(
        "error: Python 3.11, 3.12, 3.13 or 3.14 is needed, python3 is Python {}.{}".format(*python)
    )
    assert "apt install python3" in line and "make PYTHON=" in line
    assert not done.stdout


def test_no_python_gets_the_same_line(clone):
    done = make(clone, "repro")
    assert done.returncode
    assert done.stderr.startswith(
        "error: Python 3.11, 3.12, 3.13 or 3.14 is needed, python3 is not there: install one"
    )


def test_the_newest_python_that_will_do_is_taken_and_one_that_is_named_wins(clone):
    write_script(clone / "bin/python3.14", "#!/bin/sh\nexit 127\n")  # pyenv's, where no 3.14 is installed
    for name, python in {"python3": (3, 15), "python3.13": (3, 13), "python3.11": (3, 11)}.items():
        write_python(clone / "bin" / name, python)
    assert make(clone, ".venv/installed").stdout == "Python 3.13 runs install.py\n"
    assert make(clone, ".venv/installed", "PYTHON=python3.11").stdout == "Python 3.11 runs install.py\n"
    assert make(clone, ".venv/installed", "TORCH=cpu").stdout == "Python 3.13 runs install.py --torch cpu\n"


def test_make_lets_python_write_bytecode(clone):
    """Without it each command compiles torch and transformers anew."""
    python = '[ "$1" = -c ] || echo ${PYTHONDONTWRITEBYTECODE-bytecode is written}'
    write_script(clone / "bin/python3.13", f"#!/bin/sh\n{python}\n")
    done = make(clone, ".venv/installed", PYTHONDONTWRITEBYTECODE="1")
    assert done.stdout == "bytecode is written\n"


def test_pip_is_run_from_its_wheel_and_installs_what_the_lock_names(clone, index):
    done = install(clone, index, PYTHONPATH="/somewhere/else")
    assert done.returncode == 0, done.stderr
    assert "GiB to download" in done.stdout
    first, second = calls(clone)
    assert given(first) == ["setuptools"]  # builds what is published as source only
    assert given(second) == [
        "pip",
        "dvclive",
        "nvidia-cublas",
        "nvidia-ml-py",
        "setuptools",
        "torch",
        "torchvision",
    ]
    assert "sha256:66" in second["given"] and "sys_platform == 'linux'" in second["given"]
    for call in (first, second):
        assert call["by"] == "pip"
        assert {"--require-hashes", "--no-deps"} <= set(call["arguments"])
        assert call["pythonpath"] is None
    assert "--no-build-isolation" in second["arguments"]
    assert (clone / ".venv/bin/python").exists()


def test_what_is_installed_is_not_installed_again_until_the_lock_says_something_else(clone, index):
    assert install(clone, index).returncode == 0
    os.utime(clone / "requirements.lock")  # a file that is newer and says the same, as after `git checkout`
    assert install(clone, index).stdout == ""
    assert len(calls(clone)) == 2

    (clone / ".venv/left_over").touch()
    with (clone / "requirements.lock").open("a") as lock:
        lock.write("tqdm==1.0 \\\n    --hash=sha256:88\n")
    assert install(clone, index).returncode == 0
    assert given(calls(clone)[-1])[-1] == "tqdm"
    assert not (clone / ".venv/left_over").exists()


def test_an_installation_that_broke_off_is_begun_again(clone, index):
    (clone / "broken").touch()
    done = install(clone, index)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: the installation broke off")
    assert not (clone / ".venv/installed").exists()

    (clone / "broken").unlink()
    (clone / ".venv/half_a_package").touch()
    assert install(clone, index).returncode == 0
    assert not (clone / ".venv/half_a_package").exists()
    assert (clone / ".venv/installed").exists()


def test_one_that_breaks_off_over_a_whole_one_is_not_taken_for_it(clone, index):
    assert install(clone, index).returncode == 0
    (clone / "broken").touch()
    assert install(clone, index, "--torch", "cpu").returncode == 1
    (clone / "broken").unlink()
    count = len(calls(clone))
    assert install(clone, index).returncode == 0
    assert len(calls(clone)) == count + 2


def test_a_pip_with_another_hash_is_not_run(clone, index):
    lock = clone / "requirements.lock"
    lock.write_text(lock.read_text().replace(index.hash, "0" * 64))
    done = install(clone, index)
    assert done.returncode == 1
    assert f"pip-{PIP}-py3-none-any.whl" in done.stderr and "has not the hash" in done.stderr
    assert not (clone / "calls").exists()


def test_no_network_is_one_line(clone):
    done = install(clone, SimpleNamespace(url="http://127.0.0.1:9/simple"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: pip can't be fetched from http://127.0.0.1:9/simple/pip/")
    assert "check the network" in line


def test_uv_is_used_where_it_is(clone, index):
    write_script(clone / "bin/uv", f"#!{sys.executable}\nNAME = 'uv'\n{RECORDER}")
    done = install(clone, index, path=f"{clone}/bin:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    for call in calls(clone):
        assert call["by"] == "uv"
        assert call["arguments"][:2] == ["pip", "install"]
        assert f"--python {clone}/.venv/bin/python --require-hashes --no-deps" in " ".join(call["arguments"])


def test_another_build_of_torch_takes_all_else_from_the_lock(clone, index):
    assert install(clone, index, "--torch", "cpu").returncode == 0
    _, locked, torch = calls(clone)
    assert given(locked) == ["pip", "dvclive", "nvidia-ml-py", "setuptools"]
    assert "--require-hashes" in locked["arguments"]
    assert torch["given"] == "torch==2.0+cpu\ntorchvision==0.2+cpu\n"
    assert "--index-url https://download.pytorch.org/whl/cpu" in " ".join(torch["arguments"])

    # the same build again, without naming it: nothing is left to do
    assert install(clone, index).stdout == ""
    assert len(calls(clone)) == 3


def test_a_misspelt_build_of_torch_is_one_line(clone, index):
    done = install(clone, index, "--torch", "cuda")
    assert done.returncode == 1
    assert (
        done.stderr == "error: TORCH=cuda: no build of torch; give pypi, cpu, or CUDA's version as in cu126\n"
    )
    assert not (clone / ".venv").exists()


def test_an_environment_that_is_a_link_is_left_alone(clone, index, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/file").touch()
    (clone / ".venv").symlink_to(tmp_path / "shared")
    done = install(clone, index)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: .venv is a link to {tmp_path}/shared")
    assert (tmp_path / "shared/file").exists()
