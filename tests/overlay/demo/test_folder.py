"""The lab's folder: its lock, its journal, and the sweep of what a dead lab left."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from overlay.demo.folder import PREFIX, LabFolder, sweep


def crash(parent: Path, code: str) -> Path:
    """Run code with a LabFolder `folder` in a process that ends without closing it; the folder's path."""
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom overlay.demo.folder import LabFolder\n"
        f"folder = LabFolder(parent=Path({str(parent)!r}))\n{code}\n"
        "print(folder.path, flush=True)\nos._exit(1)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    return Path(done.stdout.strip())


def test_a_closed_folder_is_gone(tmp_path: Path) -> None:
    with LabFolder(parent=tmp_path) as folder:
        assert folder.path.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


def test_a_kept_folder_stays_until_the_next_sweep(tmp_path: Path) -> None:
    with LabFolder(parent=tmp_path, keep=True) as folder:
        pass
    assert folder.path.exists()
    assert sweep(lambda entry: None, parent=tmp_path) == [folder.path]


def test_a_running_lab_s_folder_is_left_alone(tmp_path: Path) -> None:
    undone: list[Any] = []
    with LabFolder(parent=tmp_path) as folder:
        folder.note({"kind": "x"})
        assert sweep(undone.append, parent=tmp_path) == []
        assert folder.path.exists()
    assert undone == []


def test_a_dead_lab_is_undone_latest_first(tmp_path: Path) -> None:
    left = crash(
        tmp_path,
        "folder.note({'n': 1}); folder.note({'n': 2}); folder.note({'n': 3}); folder.forget({'n': 2})",
    )
    undone: list[Any] = []
    assert sweep(undone.append, parent=tmp_path) == [left]
    assert undone == [{"n": 3}, {"n": 1}]
    assert not left.exists()


def test_a_damaged_journal_is_removed_all_the_same(tmp_path: Path) -> None:
    left = crash(tmp_path, "(folder.path / 'journal.json').write_text('[1, {')")
    assert sweep(lambda entry: None, parent=tmp_path) == [left]


def test_a_folder_that_others_may_write_gives_no_orders(tmp_path: Path) -> None:
    left = crash(tmp_path, "folder.note({'n': 1})")
    left.chmod(0o777)
    undone: list[Any] = []
    assert sweep(undone.append, parent=tmp_path) == []
    assert undone == []
    planted = tmp_path / f"{PREFIX}{os.getuid()}-1-link"
    planted.symlink_to(left)
    assert sweep(undone.append, parent=tmp_path) == []
