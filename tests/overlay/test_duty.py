import calendar

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support_config import relay_config

from overlay.duty import WIRE_BYTES_PER_PACKET, Duty, DutyRoster, Usage, decode_usage
from overlay.errors import DecodeError
from overlay.node.duty import USAGE_FILE, DutyKeeper

NOVEMBER = calendar.timegm((2026, 11, 22, 12, 0, 0))
DECEMBER = calendar.timegm((2026, 12, 1, 0, 0, 1))
CAP = 1000 * WIRE_BYTES_PER_PACKET


def test_a_relay_drains_before_its_cap_shuts_at_it_and_opens_next_month():
    roster = DutyRoster(Usage(), CAP)
    roster.note_carried(949, NOVEMBER)
    assert roster.duty is Duty.OPEN
    roster.note_carried(950, NOVEMBER)
    assert roster.duty is Duty.DRAINING
    assert "95 %" in roster.explain()
    roster.note_carried(1000, NOVEMBER)
    assert roster.duty is Duty.SHUT
    roster.note_carried(1000, DECEMBER)
    assert roster.duty is Duty.OPEN
    assert roster.usage == Usage("2026-12", 0)


def test_a_clock_that_goes_back_does_not_begin_a_month_anew():
    roster = DutyRoster(Usage(), CAP)
    roster.note_carried(1000, DECEMBER)
    roster.note_carried(1000, NOVEMBER)
    assert roster.duty is Duty.SHUT
    roster.note_carried(1000, DECEMBER)
    assert roster.duty is Duty.SHUT


def test_without_a_cap_nothing_ends():
    roster = DutyRoster(Usage(), 0)
    roster.note_carried(10**15, NOVEMBER)
    assert roster.duty is Duty.OPEN
    assert roster.explain() == ""


def test_a_drained_relay_stops_when_it_is_empty_or_its_time_is_over():
    roster = DutyRoster(Usage(), 0)
    assert not roster.may_stop(0, 1e9)
    roster.drain(90.0, 10.0)
    assert roster.duty is Duty.DRAINING
    assert not roster.may_stop(0, 90.5), "others are to know first that it leaves"
    assert not roster.may_stop(1, 99.9)
    assert roster.may_stop(0, 99.9)
    assert roster.may_stop(1, 100.0)


@given(st.lists(st.integers(0, 10**9)))
def test_every_packet_counts_once(totals):
    roster = DutyRoster(Usage(), 0)
    for total in totals:
        roster.note_carried(total, NOVEMBER)
    assert roster.usage.carried_bytes == max(totals, default=0) * WIRE_BYTES_PER_PACKET


@given(st.from_regex(r"[0-9]{4}-[0-9]{2}", fullmatch=True), st.integers(0, 2**62))
def test_usage_comes_back(month, carried):
    assert decode_usage(Usage(month, carried).encode()) == Usage(month, carried)


@given(st.binary(max_size=200))
def test_no_file_is_taken_for_a_usage_by_accident(noise):
    with pytest.raises(DecodeError):
        decode_usage(noise)


@pytest.mark.parametrize("text", [b'{"month":"2026-11","carried_bytes":-1}', b'{"month":"2026-11"}'])
def test_impossible_usages_are_refused(text):
    with pytest.raises(DecodeError):
        decode_usage(text)


async def test_the_count_survives_a_restart(tmp_path):
    config = relay_config(tmp_path, monthly_cap_bytes=CAP)
    keeper = DutyKeeper(config, is_exit=False)
    keeper.tick(100, lambda duty: None)
    keeper.store()
    again = DutyKeeper(config, is_exit=False)
    again.tick(50, lambda duty: None)
    assert again.status()["bytes"] == 150 * WIRE_BYTES_PER_PACKET


async def test_an_exit_counts_the_internet_side_too(tmp_path):
    keeper = DutyKeeper(relay_config(tmp_path, monthly_cap_bytes=CAP), is_exit=True)
    keeper.tick(100, lambda duty: None)
    assert keeper.status()["bytes"] == 200 * WIRE_BYTES_PER_PACKET


async def test_a_change_of_duty_is_told_once(tmp_path):
    keeper = DutyKeeper(relay_config(tmp_path, monthly_cap_bytes=CAP), is_exit=False)
    changes = []
    for total in (1, 960, 970, 1000, 1001):
        keeper.tick(total, changes.append)
    assert changes == [Duty.DRAINING, Duty.SHUT]
    assert "monthly_cap" in keeper.problems()[0]


async def test_a_damaged_count_begins_anew_and_a_full_disk_is_said(tmp_path):
    config = relay_config(tmp_path, monthly_cap_bytes=CAP)
    config.state_dir.mkdir(exist_ok=True)
    (config.state_dir / USAGE_FILE).write_bytes(b"rubbish")
    (config.state_dir / USAGE_FILE).chmod(0o600)
    keeper = DutyKeeper(config, is_exit=False)
    keeper.tick(1, lambda duty: None)
    (config.state_dir / USAGE_FILE).unlink()
    config.state_dir.rmdir()
    keeper.store()
    assert any("not stored" in problem for problem in keeper.problems())
    config.state_dir.mkdir()
    keeper.store()
    assert keeper.problems() == []
    await trio.lowlevel.checkpoint()
