"""Hosts of URLs, and the block list."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import extract
from jobs.page import urls
from pipeline.errors import InputError
from pipeline.recipe import load
from pipeline.storage import Storage

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"
TERMS = {"words": [], "soft_words": ["a", "b"], "soft_least": 2, "sub_words": ["xyz"], "allow": []}


def test_a_host_is_folded_without_port_and_in_punycode() -> None:
    assert urls.host_of("HTTPS://User@WWW.Bücher.Example.:8080/x") == "www.xn--bcher-kva.example"
    assert urls.host_of("http://[::1") == ""


@given(st.text(max_size=100))
def test_no_url_breaks_the_host(url: str) -> None:
    urls.host_of(url)


def test_domains_pages_and_words_are_blocked_and_their_neighbours_are_not(tmp_path: Path) -> None:
    (tmp_path / "gambling").mkdir()
    (tmp_path / "gambling" / "domains").write_text("bad.example\nbücher.example\ngood.example\n")
    (tmp_path / "gambling" / "urls").write_text("mixed.example/bad/page\n")
    (tmp_path / "words.txt").write_text("# words\ncasino\n")
    lists = {"words": [f"file:{tmp_path}/words.txt"], "soft_words": ["sex", "cam", "girl"], "sub_words": ["free porn"]}
    recipe = load(DEMO).extract.block_list.model_copy(update=lists | {"allow": ["good.example"]})
    blocked = urls.BlockList(urls.hashed(urls.listed(str(tmp_path), [])), urls.terms(recipe))
    for url in (
        "https://bad.example/",
        "http://WWW.Bad.Example:8080/x",
        "https://a.b.bad.example./",
        "https://xn--bcher-kva.example/",
    ):
        assert blocked.reason(url, urls.host_of(url)) == "blocked_domain", url
    for url in ("https://ok.example/CASINO/x", "https://ok.example/sex-cam", "https://ok.example/best-FreePorn1"):
        assert blocked.reason(url, "ok.example") == "blocked_word"
    for url in ("http://www.mixed.example/bad/page/", "https://mixed.example/bad/page#top"):
        assert blocked.reason(url, urls.host_of(url)) == "blocked_url"
    for url in (
        "https://notbad.example/",
        "https://bad.example.org/",
        "https://ok.example/casinos",
        "https://ok.example/sex-education",
        "https://mixed.example/bad/page2",
        "https://a.good.example/casino",
    ):
        assert blocked.reason(url, urls.host_of(url)) is None, url
    with pytest.raises(InputError, match="nothing"):
        list(urls.listed(str(tmp_path), ["nothing"]))
    with pytest.raises(InputError, match="gone"):
        urls.terms(recipe.model_copy(update={"sub_words": ["file:gone.txt"]}))
    (tmp_path / "latin.txt").write_bytes(b"b\xfccher\n")
    with pytest.raises(InputError, match="latin"):
        urls.terms(recipe.model_copy(update={"words": [f"file:{tmp_path}/latin.txt"]}))


@given(st.text(max_size=200))
def test_no_url_breaks_the_block_list(url: str) -> None:
    blocked = urls.BlockList(urls.hashed(["bad.example"]), TERMS | {"words": ["casino"]})
    assert blocked.reason(url, urls.host_of(url)) in (None, "blocked_domain", "blocked_url", "blocked_word")


@given(st.lists(st.from_regex(r"[a-z]{1,8}\.[a-z]{2,4}", fullmatch=True), max_size=20), st.data())
def test_a_domain_blocks_itself_and_all_below_it(names: list[str], data: st.DataObject) -> None:
    blocked = urls.BlockList(urls.hashed(names), TERMS)
    probe = data.draw(st.sampled_from([*names, "other.test"]))
    host = data.draw(st.sampled_from(["", "www.", "a.b."])) + probe
    assert (blocked.reason(f"http://{host}/", host) == "blocked_domain") == (probe in names)


def test_neighbours_of_a_blocked_domain_stay() -> None:
    blocked = urls.BlockList(urls.hashed(["Bad.Example"]), TERMS | {"words": ["casino"]})
    for host in ("notbad.example", "bad.example.org", "example", ""):
        assert blocked.reason(f"http://{host}/", host) is None
    assert blocked.reason("http://x.test/CASINO-night", "x.test") == "blocked_word"
    assert blocked.reason("http://x.test/casinova", "x.test") is None


def test_a_folder_in_the_layout_of_ut1_is_read(tmp_path: Path) -> None:
    for category, name in (("adult", "a.test"), ("warez", "w.test")):
        (tmp_path / category).mkdir()
        (tmp_path / category / "domains").write_text(name + "\n")
    assert list(urls.listed(str(tmp_path), [])) == ["a.test", "w.test"]
    assert list(urls.listed(str(tmp_path), ["warez"])) == ["w.test"]
    with pytest.raises(InputError, match="nothere"):
        list(urls.listed(str(tmp_path), ["nothere"]))
    assert urls.hashed(["b.x", "a.x", "a.x"]).tolist() == urls.hashed(["a.x", "b.x"]).tolist()
    before = urls.identity(str(tmp_path), [])
    assert before == urls.identity(str(tmp_path), []) != urls.identity(str(tmp_path), ["warez"])
    (tmp_path / "warez" / "urls").write_text("c.test/x\n")
    assert urls.identity(str(tmp_path), []) != before


def test_a_list_that_is_not_utf_8_is_read(tmp_path: Path) -> None:
    (tmp_path / "adult").mkdir()
    for file in ("domains", "urls"):
        (tmp_path / "adult" / file).write_bytes(b"b\xfccher.test/x\nlast.test\n")
    assert list(urls.listed(str(tmp_path), [])) == ["b\ufffdcher.test/x", "last.test"] * 2
    blocked = urls.BlockList(urls.hashed(urls.listed(str(tmp_path), [])), TERMS)
    assert blocked.reason("http://last.test/", "last.test") == "blocked_domain"


def test_the_table_serves_from_a_mapped_file(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", urls.hashed(["bad.example"]))
    blocked = urls.BlockList(np.load(tmp_path / "t.npy", mmap_mode="r"), TERMS)
    assert blocked.reason("", "bad.example") == "blocked_domain"


def test_a_worker_maps_the_block_list_and_holds_no_copy(tmp_path: Path) -> None:
    """Five million domains, 40 MB: open in 50 ms; lookups in another process cost it less than 20 MB of its own."""
    random = np.random.default_rng(1)
    np.save(tmp_path / "list.npy", np.sort(random.integers(0, 2**63, 5_000_000, dtype=np.uint64)))
    script = f"""
import re, pathlib
from jobs.extract import open_block_list
from jobs.page import urls
from pipeline.recipe import load
from pipeline.storage import Storage
def own():
    return int(re.search(r"Anonymous: +(\\d+) kB", pathlib.Path("/proc/self/smaps_rollup").read_text())[1])
terms = urls.terms(load({str(DEMO)!r}).extract.block_list)
before = own()
blocked = open_block_list(Storage({str(tmp_path)!r}), "list.npy", terms)
for n in range(20_000):
    blocked.reason(f"http://a{{n}}.b{{n}}.test/x", f"a{{n}}.b{{n}}.test")
print(own() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=DEMO.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20_000
    storage, terms, seconds = Storage(tmp_path), urls.terms(load(DEMO).extract.block_list), []
    for _ in range(5):
        before = perf_counter()
        extract.open_block_list(storage, "list.npy", terms)
        seconds.append(perf_counter() - before)
    assert min(seconds) < 0.05


def test_the_path_of_a_word_list_may_have_a_colon(tmp_path: Path) -> None:
    (tmp_path / "a:b.txt").write_text("# words\nBad\n")
    recipe = load("recipes/demo.yaml").extract.block_list.model_copy(
        update={"words": [f"file:{tmp_path}/a:b.txt", "who:ever"]}
    )
    assert urls.terms(recipe)["words"] == ["bad", "who:ever"]
