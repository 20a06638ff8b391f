"""Flame graphs: stacks of `perf script` are read, put into parts and drawn."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

_BENCH = Path(__file__).resolve().parents[2] / "bench"
_spec = importlib.util.spec_from_file_location("bench_flame", _BENCH / "flame.py")
assert _spec is not None and _spec.loader is not None
flame = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(flame)

SCRIPT = """\
hopfare-data  2860 28558.529917:    1428571 cpu-clock:ppp:
\tffffffff8a nft_do_chain+0x17 ([kernel.kallsyms])
\tffffffff81 tun_chr_write_iter+0x71 ([kernel.kallsyms])
\t    1ad42f hopfare_core::shared::Shared::write_tun+0x4f (/x/hopfare.so)
\t    17bab0 hopfare_dataplane::data::DataThread::run+0x5d40 (/x/hopfare.so)
\tffffffffffffffff [unknown] ([unknown])

hopfare-data  2860 28558.534337:    1428571 cpu-clock:ppp:
\t    405db7 aws_lc_0_47_0_aes_gcm_encrypt_avx512+0x37397 (/x/hopfare.so)
\t    31f305 <hopfare_core::suites::Aead as core::Seal>::seal::h0123456789abcdef+0x95 (/x/hopfare.so)
\t    17bf05 hopfare_dataplane::data::DataThread::run+0x6195 (/x/hopfare.so)
"""


def test_stacks_are_read_outermost_first() -> None:
    first, second = flame.decode_stacks((SCRIPT + "\n").splitlines())
    run, write = "hopfare_dataplane::data::DataThread::run", "hopfare_core::shared::Shared::write_tun"
    assert first == ("hopfare-data", run, write, "tun_chr_write_iter", "nft_do_chain")
    assert second[2:] == ("<hopfare_core::suites::Aead as core::Seal>::seal", "aws_lc_aes_gcm_encrypt_avx512")


def test_parts_add_up() -> None:
    rows = flame.table(Counter(flame.decode_stacks(SCRIPT.splitlines())), 3.0)
    assert {name: micros for name, _, micros in rows} == {
        "TUN writes: nftables, conntrack": 1.5,
        "onion layers' AES": 1.5,
    }
    assert flame.table(Counter(), None) == []


def test_the_picture_is_well_formed_and_as_wide_as_its_samples() -> None:
    stacks = Counter({("a", "<b as c>&"): 3, ("a", "d"): 1, ("e",): 4, ("too", "small"): 0})
    root = ElementTree.fromstring(flame.svg(stacks, "time & <space>"))
    space = "{http://www.w3.org/2000/svg}"
    widths = {
        group.findtext(f"{space}title"): float(group.find(f"{space}rect").attrib["width"])  # type: ignore[union-attr]
        for group in root.iter(f"{space}g")
    }
    assert widths == {"a 50.0%": 599.5, "<b as c>& 37.5%": 449.5, "d 12.5%": 149.5, "e 50.0%": 599.5}
