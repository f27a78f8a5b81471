"""What is there is whole: replacement under kill -9 at any point, leftovers, what stands in the way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT
from explainmyxray.errors import UserError, printable, shortened
from explainmyxray.outputs import replacing, replacing_folder
from kaggle_archives import stage_command, stage_environment, workspace

FILES = 50
# Replaces the folder `images`, all files of which say "old", by one that says "new", and kills itself before
# the system call on files that the first argument counts: renaming, removing a file, removing a folder.
REPLACE_AND_DIE = """
import os, shutil, signal, sys
from pathlib import Path
from explainmyxray.outputs import replacing_folder

left = int(sys.argv[1])

def counted(call):
    def die_or_call(*arguments, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return call(*arguments, **options)
    return die_or_call

for name in ("rename", "replace", "unlink", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
with replacing_folder("images") as folder:
    folder.mkdir()
    for number in range(int(sys.argv[2])):
        (folder / f"{number}.png").write_text("new")
"""


def write_folder(path: Path, text: str) -> None:
    path.mkdir()
    for number in range(FILES):
        (path / f"{number}.png").write_text(text)


def texts(folder: Path) -> set[str]:
    return {file.read_text() for file in folder.iterdir()}


def replace_and_die(place: Path, calls: int) -> int:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "stages")}
    command = [sys.executable, "-c", REPLACE_AND_DIE, str(calls), str(FILES)]
    return subprocess.run(command, cwd=place, env=environment).returncode


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 20, FILES + 1, FILES + 2])
def test_a_kill_inside_the_replacement_leaves_one_whole_folder(tmp_path, calls):
    write_folder(tmp_path / "images", "old")
    assert replace_and_die(tmp_path, calls) == -signal.SIGKILL
    # Between the two renames there is no folder at all; the next run puts the old one back before it begins.
    if (tmp_path / "images").exists():
        assert len(list((tmp_path / "images").iterdir())) == FILES
        assert len(texts(tmp_path / "images")) == 1
    with pytest.raises(KeyboardInterrupt), replacing_folder(tmp_path / "images"):
        assert len(list((tmp_path / "images").iterdir())) == FILES
        assert texts(tmp_path / "images") == ({"old"} if calls < 2 else {"new"})
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["images"], "something of the dead run is left"


def test_without_a_kill_the_folder_is_replaced_and_nothing_is_left(tmp_path):
    write_folder(tmp_path / "images", "old")
    assert replace_and_die(tmp_path, 10**9) == 0
    assert texts(tmp_path / "images") == {"new"} and [path.name for path in tmp_path.iterdir()] == ["images"]


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = os.getppid()
    for name in (f".a.csv.{dead.pid}.part", f".a.csv.{alive}.part", f".b.csv.{dead.pid}.part", ".a.csv.part"):
        (tmp_path / name).write_text("")
    (tmp_path / "a.csv").write_text("old rows")
    (tmp_path / f".a.csv.{dead.pid}.old.part").mkdir()
    with replacing(tmp_path / "a.csv") as aside:
        aside.write_text("rows")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a.csv", f".a.csv.{alive}.part", f".b.csv.{dead.pid}.part", ".a.csv.part"}


@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_what_is_no_folder_is_named_before_any_work(tmp_path, kind):
    path = tmp_path / "images"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/film.png").write_text("kept")
    if kind == "file":
        path.write_text("kept")
    else:
        path.symlink_to(tmp_path / ("elsewhere" if kind == "link" else "nowhere"))
    with pytest.raises(UserError, match="is a (symbolic link|file), and a folder is to be written there"):
        with replacing_folder(path):
            raise AssertionError("work was begun")
    assert (tmp_path / "elsewhere/film.png").read_text() == "kept" and os.path.lexists(path)


def test_a_folder_in_the_place_of_a_file_is_named_and_kept(tmp_path):
    (tmp_path / "studies.csv").mkdir()
    (tmp_path / "studies.csv/notes").write_text("kept")
    with pytest.raises(UserError, match="studies.csv is a folder, and a file is to be written there"):
        with replacing(tmp_path / "studies.csv") as aside:
            aside.write_text("rows")
    assert (tmp_path / "studies.csv/notes").read_text() == "kept" and len(list(tmp_path.iterdir())) == 1


def fetch_in_background(place: Path) -> subprocess.Popen:
    """The stage on phantoms enough for a pool, once it has written its first images."""
    workspace(place, "phantom", count=2000, image_size=224)
    process = subprocess.Popen(
        stage_command(), cwd=place, env=stage_environment(), stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list((place / "data").glob(".images.*.part/phantom/*.png")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    return process


def session_members(session: int) -> list[int]:
    """The processes of a session that run: those that ended and nobody asked for do not."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def wait_until_gone(session: int) -> bool:
    deadline = time.monotonic() + 20
    while session_members(session) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not session_members(session)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_fetch_with_its_pool(tmp_path, number):
    process = fetch_in_background(tmp_path)
    assert len(session_members(process.pid)) > 1 or os.cpu_count() < 2
    process.send_signal(number)
    process.wait(timeout=30)
    assert wait_until_gone(process.pid), "processes of the pool are left"
    if number == signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM
        assert list((tmp_path / "data").iterdir()) == [tmp_path / "data/archives"] or not list(
            (tmp_path / "data").glob(".*")
        )
        assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


def run_as_stage(code: str, place: Path) -> subprocess.CompletedProcess:
    """Code that is `main` of a command, as its body runs under `exit_on_user_error`."""
    whole = f"""
from pathlib import Path
from explainmyxray.errors import UserError, exit_on_user_error
def main():
    {code}
exit_on_user_error(main)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "stages")}
    return subprocess.run(
        [sys.executable, "-c", whole], cwd=place, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "code, words",
    [
        ("raise OSError(30, 'Read-only file system', 'data/images')", "data/images: the disk is read-only"),
        ("raise OSError(13, 'Permission denied', 'metrics')", "metrics: permission denied"),
        ("raise OSError(28, 'No space left on device')", "no space left on the disk"),
        ("raise OSError(122, 'Disk quota exceeded')", "no space left in your quota"),
        ("Path('x' * 300).write_text('')", "the name is too long"),
        ("raise UserError('a film is called \\x1b]0;pwned\\x07 \\x9b2J')", r"called \x1b]0;pwned\x07 \x9b2J"),
    ],
)
def test_what_a_disk_or_a_name_does_is_one_plain_line(tmp_path, code, words):
    done = run_as_stage(code, tmp_path)
    assert done.returncode == 1 and words in done.stderr
    assert (
        done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and done.stderr[:-1].isprintable()
    )


def test_a_bug_keeps_its_traceback(tmp_path):
    done = run_as_stage("raise RuntimeError('a bug')", tmp_path)
    assert "Traceback" in done.stderr and "a bug" in done.stderr


def test_quoted_values_are_short_and_printable():
    assert shortened("Mass|Edema") == "'Mass|Edema'"
    assert len(shortened("9" * 5000)) < 70 and shortened("9" * 5000).endswith("…'")
    assert printable(shortened("a\x1b[2J\nb")).isprintable()
