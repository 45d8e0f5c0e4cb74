"""What lies in the data folder is its owner's alone, whatever the umask is."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from captioner.private_files import make_private_file, make_private_folder

#: In a process of its own, as a umask is a process's. It submits, which needs both databases, has
#: a key made, and tells what there is.
CODE = """
import json, os, sys
os.umask(int(sys.argv[1], 8))
from captioner.source import Source
from captioner.jobs import Jobs
from captioner.settings import Settings
from captioner.webhooks.encryption import open_cipher
settings = Settings()
with Jobs(settings) as jobs:
    jobs.submit("data:,x")
    open_cipher(settings, create=True)
    modes = {
        os.path.relpath(os.path.join(folder, name), sys.argv[2]):
            oct(os.lstat(os.path.join(folder, name)).st_mode & 0o7777)
        for folder, folders, files in os.walk(sys.argv[2]) for name in (*folders, *files)
    }
print(json.dumps(modes))
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", ["000", "022", "077", "177"])
def test_the_data_folder_and_its_files(tmp_path: Path, umask: str) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("CAPTIONER_")}
    env["CAPTIONER_DATA_DIR"] = str(tmp_path / "new" / "data")
    done = subprocess.run(
        [sys.executable, "-c", CODE, umask, str(tmp_path)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    modes = json.loads(done.stdout)
    folders = {"new", "new/data"}
    files = {"captioner.sqlite3", "captioner.sqlite3-wal", "broker.sqlite3", "webhooks.key"}
    assert folders | {f"new/data/{name}" for name in files} <= modes.keys()
    for name, found in modes.items():
        assert found == ("0o700" if name in folders else "0o600"), name


def test_what_is_there_stays_as_it_is(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "folder/file"
    folder.mkdir()
    folder.chmod(0o755)
    file.write_text("x")
    file.chmod(0o640)
    make_private_folder(folder)
    make_private_file(file)
    assert (mode(folder), mode(file), file.read_text()) == (0o755, 0o640, "x")


def test_a_link_is_not_followed_to_create_a_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    make_private_file(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(OSError):
            make_private_folder(path)
