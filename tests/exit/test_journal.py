"""The journal of changes: what is on the disk, and when it counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exit.errors import EnvError
from exit.io.journal import JOURNAL_NAME, Entry, Journal, read_setting, write_setting


def test_entries_are_on_the_disk_before_anything_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    journal = Journal.open(folder)
    first, second = Entry("table", "hopfare_exit"), Entry("setting", "net/ipv4/x", "0", "1")
    journal.add(first)
    journal.add(second)
    listed = json.loads((folder / JOURNAL_NAME).read_text())["entries"]
    assert [entry["target"] for entry in listed] == ["hopfare_exit", "net/ipv4/x"]
    assert (folder / JOURNAL_NAME).stat().st_mode & 0o777 == 0o600
    journal.close()
    again = Journal.open(folder)
    assert again.entries == (first, second)
    for entry in reversed(again.entries):
        again.remove(entry)
    assert not (folder / JOURNAL_NAME).exists()
    again.close()
    again.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    with pytest.raises(EnvError, match="another exit is running"):
        Journal.open(tmp_path)
    journal.close()
    Journal.open(tmp_path).close()


@pytest.mark.parametrize("field", ["boot_id", "namespace"])
def test_changes_of_another_boot_or_namespace_are_void(tmp_path: Path, field: str) -> None:
    journal = Journal.open(tmp_path)
    journal.add(Entry("table", "hopfare_exit"))
    journal.close()
    path = tmp_path / JOURNAL_NAME
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {field: "other"}))
    journal = Journal.open(tmp_path)
    assert journal.entries == ()
    journal.close()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 2}', b"\xff" * 100, b"x" * (2 << 20)])
def test_a_damaged_journal_is_moved_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / JOURNAL_NAME).write_bytes(content)
    journal = Journal.open(tmp_path)
    assert journal.entries == ()
    assert (tmp_path / "network.damaged").read_bytes() == content
    journal.close()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvError, match="cannot use the state folder"):
        Journal.open(tmp_path / "file" / "folder")


def test_settings() -> None:
    assert read_setting("kernel/osrelease")
    assert read_setting("no/such/setting") is None
    with pytest.raises(EnvError, match=r"no\.such\.setting"):
        write_setting("no/such/setting", "1")
