"""Downloading against a local server, and unpacking of hostile archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import re
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from evalkit.datasets import Archive, DatasetInfo, Item, Layout
from evalkit.datasets import download as module
from evalkit.datasets.download import by_hand, download, fetch, unpack
from evalkit.errors import DataError, UsageError

BODY = random.Random(1).randbytes(3_000_000)


@dataclass
class Served:
    """What the server does: ``cut`` bytes of each answer are sent before the connection is closed."""

    body: bytes = BODY
    etag: str = '"one"'
    date: str = ""
    cuts: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    ranges: bool = True
    url: str = ""
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Served]:
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            served.asked.append(wanted)
            if served.status:
                self.send_error(served.status.pop(0))
                return
            unchanged = self.headers.get("If-Range", served.etag or served.date) == (served.etag or served.date)
            found = re.fullmatch(r"bytes=(\d+)-", wanted)
            start = int(found[1]) if found and served.ranges and unchanged else 0
            if start and start >= len(served.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(served.body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(served.body) - 1}/{len(served.body)}")
            self.send_header("Content-Length", str(len(served.body) - start))
            if served.etag:
                self.send_header("ETag", served.etag)
            if served.date:
                self.send_header("Last-Modified", served.date)
            self.end_headers()
            part = served.body[start:]
            self.wfile.write(part[: served.cuts.pop(0)] if served.cuts else part)

        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.handle_error = lambda request, address: None  # type: ignore[method-assign]  # clients that hang up
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{httpd.server_port}/set.bin"
    yield served
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def read(root: Path) -> Layout:
    return Layout([Item("a", "a", root / "audio" / "a.wav")], "x", 1)


def declared(*archives: Archive) -> DatasetInfo:
    return DatasetInfo("mine", "1", "", "sound", "CC0", "", "https://example.org", read, "mine", archives)


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in members.items():
            z.writestr(name, data)
    return out.getvalue()


def tarred(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as t:
        for name, data in members.items():
            if isinstance(data, bytes):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                t.addfile(info, io.BytesIO(data))
            else:
                t.addfile(data)
    return out.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


GOOD = {"top/audio/a.wav": b"RIFF a", "top/audio/b.wav": b"RIFF b", "top/meta.csv": b"x"}


# -- fetching ---------------------------------------------------------------------------------------------------------


def test_download_unpacks_and_records(tmp_path: Path, server: Served) -> None:
    server.body = zipped(GOOD)
    seen = []
    info = declared(Archive(server.url, "set.zip", sha256(server.body)))
    (done,) = download(info, tmp_path, lambda *a: seen.append(a))
    assert (tmp_path / "mine/top/audio/a.wav").read_bytes() == b"RIFF a"
    assert (done.verified, done.files, done.note) == (True, 3, "sha256 as published")
    assert [p.name for p in (tmp_path / "mine/.download").iterdir()] == ["set.zip.json"]
    record = json.loads((tmp_path / "mine/.download/set.zip.json").read_text())
    assert record["sha256"] == info.archives[0].checksum[7:] and record["url"] == server.url
    assert ("fetching set.zip", len(server.body), len(server.body)) in seen
    (again,) = download(info, tmp_path)
    assert again.note == "already there" and len(server.asked) == 1
    (tmp_path / "mine/top/meta.csv").unlink()
    (tmp_path / "mine/top").rename(tmp_path / "mine/moved")
    download(info, tmp_path)
    assert (tmp_path / "mine/top/meta.csv").exists() and len(server.asked) == 2


def test_without_published_checksum_the_sha256_is_recorded_and_said(tmp_path: Path, server: Served) -> None:
    server.body = tarred(GOOD)
    (done,) = download(declared(Archive(server.url, "set.tar.gz")), tmp_path, keep=True)
    assert not done.verified and "no published checksum" in done.note and sha256(server.body)[7:] in done.note
    assert json.loads((tmp_path / "mine/.download/set.tar.gz.json").read_text())["verified"] is False
    assert (tmp_path / "mine/.download/set.tar.gz").read_bytes() == server.body


@pytest.mark.parametrize("kind", ["md5", "sha1"])
def test_other_checksums(tmp_path: Path, server: Served, kind: str) -> None:
    server.body = zipped(GOOD)
    digest = hashlib.new(kind, server.body).hexdigest()
    assert download(declared(Archive(server.url, "a.zip", f"{kind}:{digest}")), tmp_path)[0].verified
    with pytest.raises(DataError, match=f"{kind} is {digest}"):
        download(declared(Archive(server.url, "b.zip", f"{kind}:{digest[::-1]}")), tmp_path)


def test_resumes_after_a_cut_connection(tmp_path: Path, server: Served) -> None:
    server.cuts = [1_000_000, 500_000]
    part = tmp_path / "x.part"
    fetch(Archive(server.url, "x"), part, pause=0)
    assert part.read_bytes() == BODY
    assert server.asked == ["", "bytes=1000000-", "bytes=1500000-"]


def test_resumes_in_a_later_run_by_date(tmp_path: Path, server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    server.etag, server.date, server.cuts = 'W/"weak"', "Wed, 21 Oct 2015 07:28:00 GMT", [1_000_000]
    server.etag = ""
    part = tmp_path / "x.part"
    monkeypatch.setattr(module, "TRIES", 1)
    with pytest.raises(DataError, match="ended after 1,000,000 of 3,000,000 bytes"):
        fetch(Archive(server.url, "x"), part, pause=0)
    assert fetch(Archive(server.url, "x"), part, pause=0) is True
    assert part.read_bytes() == BODY and server.asked[1] == "bytes=1000000-"


@pytest.mark.parametrize("checksum", ["", sha256(BODY)])
def test_file_that_changed_meanwhile_is_fetched_anew(tmp_path: Path, server: Served, checksum: str) -> None:
    part = tmp_path / "x.part"
    part.write_bytes(b"old" * 1000)
    (tmp_path / "x.part.etag").write_text('"zero"')
    fetch(Archive(server.url, "x", checksum), part, pause=0)
    assert part.read_bytes() == BODY and server.asked == ["bytes=3000-"]


def test_part_of_unknown_origin_without_checksum_is_not_trusted(tmp_path: Path, server: Served) -> None:
    part = tmp_path / "x.part"
    part.write_bytes(b"junk")
    fetch(Archive(server.url, "x"), part, pause=0)
    assert part.read_bytes() == BODY and server.asked == [""]


def test_damaged_part_is_found_by_checksum_and_fetched_once_more(tmp_path: Path, server: Served) -> None:
    server.body = zipped(GOOD)
    work = tmp_path / "mine/.download"
    work.mkdir(parents=True)
    (work / "set.zip.part").write_bytes(b"junk of some length")
    assert download(declared(Archive(server.url, "set.zip", sha256(server.body))), tmp_path, pause=0)[0].verified
    assert server.asked == ["bytes=19-", ""]


def test_complete_part_needs_no_second_download(tmp_path: Path, server: Served) -> None:
    part = tmp_path / "x.part"
    part.write_bytes(BODY)
    (tmp_path / "x.part.etag").write_text(server.etag)
    fetch(Archive(server.url, "x"), part, pause=0)
    assert part.read_bytes() == BODY and server.asked == ["bytes=3000000-"]
    part.write_bytes(BODY + b"too long")
    fetch(Archive(server.url, "x"), part, pause=0)
    assert part.read_bytes() == BODY


def test_server_without_ranges_starts_over(tmp_path: Path, server: Served) -> None:
    server.ranges, server.cuts = False, [1_000_000]
    fetch(Archive(server.url, "x"), tmp_path / "x.part", pause=0)
    assert (tmp_path / "x.part").read_bytes() == BODY and len(server.asked) == 2


def test_wrong_checksum_leaves_nothing(tmp_path: Path, server: Served) -> None:
    server.body = zipped(GOOD)
    with pytest.raises(DataError, match=r"wrong checksum: sha256 is .* published is 0000"):
        download(declared(Archive(server.url, "set.zip", "sha256:" + "0" * 64)), tmp_path, pause=0)
    assert len(server.asked) == 1
    assert [p.name for p in (tmp_path / "mine").rglob("*")] == [".download"]


def test_404_is_final_and_says_the_remedy(tmp_path: Path, server: Served) -> None:
    server.status = [404, 404]
    with pytest.raises(DataError) as caught:
        download(declared(Archive(server.url, "set.zip", "md5:" + "1" * 32)), tmp_path, pause=0)
    text = str(caught.value)
    assert "the server answers 404" in text and len(server.asked) == 1
    assert f"curl -L -C - -o set.zip {server.url}" in text and "its md5 is 1111" in text
    assert f"evalkit download mine --data-root {tmp_path} --from set.zip" in text


def test_busy_server_is_asked_again(tmp_path: Path, server: Served) -> None:
    server.status = [503, 429]
    fetch(Archive(server.url, "x"), tmp_path / "x.part", pause=0)
    assert (tmp_path / "x.part").read_bytes() == BODY and len(server.asked) == 3


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIES", 2)
    archive = Archive("http://127.0.0.1:9/set.zip", "set.zip")
    with pytest.raises(DataError, match="cannot be fetched: no connection") as caught:
        download(declared(archive), tmp_path, pause=0)
    assert by_hand(declared(archive), archive, tmp_path) in str(caught.value)
    with pytest.raises(DataError, match="only http and https"):
        download(declared(Archive("file:///etc/passwd", "set.zip")), tmp_path)


def test_full_disk_is_noticed_before(tmp_path: Path, server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda p: type("U", (), {"free": 4_000_000}))
    with pytest.raises(DataError, match="too full: 6 MB needed, 4 MB free"):
        fetch(Archive(server.url, "x"), tmp_path / "x.part", pause=0)
    assert not (tmp_path / "x.part").exists()


def test_from_folder_or_file(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    body = tarred(GOOD)
    (mirror / "set.tar.gz").write_bytes(body)
    info = declared(Archive("http://127.0.0.1:9/set.tar.gz", "set.tar.gz", sha256(body)))
    download(info, tmp_path / "one", source=mirror)
    download(info, tmp_path / "two", source=mirror / "set.tar.gz")
    assert (tmp_path / "one/mine/top/meta.csv").exists() and (tmp_path / "two/mine/top/meta.csv").exists()
    assert (mirror / "set.tar.gz").read_bytes() == body
    with pytest.raises(DataError, match="no such file"):
        download(info, tmp_path / "three", source=tmp_path)
    (mirror / "set.tar.gz").write_bytes(body[:-1] + b"x")
    with pytest.raises(DataError, match="wrong checksum"):
        download(info, tmp_path / "three", source=mirror)


def test_choice_of_archives(tmp_path: Path) -> None:
    info = declared(*(Archive(f"https://example.org/{n}.zip", f"{n}.zip") for n in ("a", "b", "c")))
    names = [[a.filename[0] for a in module.select(info, only)] for only in ((), ["b"], ["c.zip", "a"], ["all"])]
    assert names == [["a"], ["b"], ["a", "c"], ["a", "b", "c"]]
    with pytest.raises(UsageError, match=r"no archive named 'd' .there are: a, b, c"):
        download(info, tmp_path, only=["d"])
    with pytest.raises(UsageError, match="nothing to download"):
        download(declared(), tmp_path)


def test_unpacks_over_a_partial_copy_and_into_the_folder_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "mine/sub/top/audio").mkdir(parents=True)
    (tmp_path / "mine/sub/top/audio/a.wav").write_bytes(b"damaged")
    (tmp_path / "mine/sub/top/audio/own.wav").write_bytes(b"mine")
    (tmp_path / "set.zip").write_bytes(zipped(GOOD))
    download(declared(Archive("https://example.org/set.zip", "set.zip", folder="sub")), tmp_path, source=tmp_path)
    got = {p.name: p.read_bytes() for p in (tmp_path / "mine/sub/top/audio").iterdir()}
    assert got == {"a.wav": b"RIFF a", "b.wav": b"RIFF b", "own.wav": b"mine"}


# -- hostile archives -------------------------------------------------------------------------------------------------


def evil_zip_link(target: str) -> bytes:
    info = zipfile.ZipInfo("audio/link.wav")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("audio/a.wav", b"RIFF")
        z.writestr(info, target)
    return out.getvalue()


HOSTILE = {
    "zip dots": (zipped({"audio/a.wav": b"x", "../escaped.wav": b"x"}), "leads out of the folder"),
    "zip inner dots": (zipped({"audio/../../escaped.wav": b"x"}), "leads out of the folder"),
    "zip absolute": (zipped({"/escaped.wav": b"x"}), "leads out of the folder"),
    "zip windows": (zipped({"C:\\escaped.wav": b"x"}), "leads out of the folder"),
    "zip backslash": (zipped({"a\\..\\..\\escaped.wav": b"x"}), "leads out of the folder"),
    "zip link": (evil_zip_link("../../escaped.wav"), "link or a device file"),
    "zip bomb": (zipped({"a.wav": b"x", "zeros.wav": bytes(8_000_000)}), "times its size"),
    "tar dots": (tarred({"audio/a.wav": b"x", "../escaped.wav": b"x"}), "leads out of the folder"),
    "tar absolute": (tarred({"/escaped.wav": b"x"}), "leads out of the folder"),
    "tar link": (tarred({"a": special("a", tarfile.SYMTYPE, "/"), "a/escaped.wav": b"x"}), "link or a device file"),
    "tar hard link": (tarred({"a": special("a", tarfile.LNKTYPE, "../../escaped.wav")}), "link or a device file"),
    "tar device": (tarred({"a": special("a", tarfile.CHRTYPE)}), "link or a device file"),
    "tar pipe": (tarred({"a": special("a", tarfile.FIFOTYPE)}), "link or a device file"),
    "tar bomb": (tarred({"zeros.wav": bytes(8_000_000)}), "times its size"),
    "zip cut": (zipped(GOOD)[:-30], "cannot be unpacked"),
    "zip damaged": (zipped({"a.wav": BODY[:1000]}).replace(BODY[500:510], b"0123456789"), "CRC|cannot be unpacked"),
    "tar cut": (tarred({"a.wav": BODY})[:2_000_000], "cannot be unpacked|damaged"),
    "tar damaged": (tarred({"a.wav": BODY})[:-8] + bytes(8), "damaged|cannot be unpacked"),
    "tar, bomb behind its end": (tarred({"a.wav": b"x"}) + gzip.compress(bytes(8_000_000)), "times its size"),
    "gzip, no tar": (gzip.compress(b"<html>"), "neither a zip nor a tar"),
    "page": (b"<html>404</html>", "error page"),
    "empty": (b"", "neither"),
    "no file": (zipped({"audio/": b""}), "holds no file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archive_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(module, "FREE_BYTES", 4_000_000)
    body, says = HOSTILE[name]
    (tmp_path / "set.archive").write_bytes(body)
    info = declared(Archive("https://example.org/set", "set.archive"))
    with pytest.raises(DataError, match=says):
        download(info, tmp_path / "data", source=tmp_path)
    left = [p for p in tmp_path.rglob("*") if p.is_file() or p.is_symlink()]
    assert left == [tmp_path / "set.archive"]
    assert not (tmp_path.parent / "escaped.wav").exists()


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MEMBERS", 2)
    (tmp_path / "x.zip").write_bytes(zipped(GOOD))
    with pytest.raises(DataError, match="more than 2 members"):
        unpack(tmp_path / "x.zip", tmp_path)


def test_unpacked_zip_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.zip").write_bytes(zipped({"a.wav": bytes(5000)}))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda p: type("U", (), {"free": 4999}))
    with pytest.raises(DataError, match="disk is too full"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
