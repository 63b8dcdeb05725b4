"""Fetching data sets: resumed downloads, checksums, and archives unpacked with suspicion.

Standard library only, but for 7z archives (py7zr, the extra ``7z``). ``<data root>/<folder>/.download/`` holds what is
under way (``*.part``) and, for each archive, a record of what was fetched (``*.json``: URL, bytes, sha256, whether a
published checksum was met).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import lzma
import os
import re
import shlex
import shutil
import stat
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from evalkit.datasets import Archive, DatasetInfo
from evalkit.errors import DataError, UsageError

Progress = Callable[[str, int, "int | None"], None]
"""Called with what is being done, bytes done and bytes in all (None: unknown)."""

MAX_RATIO = 100
"""An archive may unpack to this many times its size (and `FREE_BYTES` more); audio archives stay below 5."""
FREE_BYTES = 64 * 2**20
MAX_MEMBERS = 2_000_000
TRIES = 5
TIMEOUT = 60.0
PLAIN = (".csv", ".txt", ".json")
"""Files that are data themselves and are put in place as they are."""
_CHUNK = 2**20
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)


@dataclass(frozen=True)
class Fetched:
    """One archive that was put in place; ``verified`` where a published checksum exists and was met."""

    filename: str
    folder: Path
    sha256: str
    verified: bool
    files: int
    note: str


def download(
    info: DatasetInfo,
    data_root: str | os.PathLike[str],
    progress: Progress | None = None,
    *,
    only: Sequence[str] = (),
    source: str | os.PathLike[str] | None = None,
    keep: bool = False,
    pause: float = 1.0,
) -> list[Fetched]:
    """Fetch a data set's archives, check them and unpack them into ``<data_root>/<info.folder>``.

    An interrupted download goes on where it stopped. Nothing of an archive reaches the data folder before its checksum
    was met and all of it was unpacked safely. What was fetched before and is still there is not fetched again.

    Args:
        only: names of archives (``dev-clean``, ``fma_large.zip``); empty is the first, ``all`` is all.
        source: take the archives from this folder (or this one file) instead of the network.
        keep: keep the archive after unpacking.
        pause: seconds before the second try, doubled for each further one.

    Raises:
        UsageError: the data set has nothing to download, or no archive of that name. DataError: no network, a wrong
            checksum, an unsafe archive, a full disk; the message says how to get the archive by hand.
    """
    if not info.archives:
        raise UsageError(f"{info.name}: nothing to download" + (" (it is generated)" if info.generated else ""))
    home = Path(data_root) / info.folder
    return [_one(info, a, home, Path(data_root), progress or _silent, source, keep, pause) for a in select(info, only)]


def select(info: DatasetInfo, only: Sequence[str] = ()) -> tuple[Archive, ...]:
    """The archives that ``only`` names; see `download`."""
    if not only:
        return info.archives[:1]
    if "all" in only:
        return info.archives
    known = {n: a for a in info.archives for n in (a.filename, archive_name(a))}
    unknown = [n for n in only if n not in known]
    if unknown:
        names = ", ".join(archive_name(a) for a in info.archives)
        raise UsageError(f"{info.name}: no archive named {unknown[0]!r} (there are: {names}; or all)")
    return tuple(a for a in info.archives if any(known[n] is a for n in only))


def archive_name(archive: Archive) -> str:
    """The file name without ``.zip``, ``.tar.gz``, ``.csv`` and the like.

    >>> archive_name(Archive("https://example.org/dev-clean.tar.gz", "dev-clean.tar.gz"))
    'dev-clean'
    """
    return re.sub(r"(\.tar)?\.(zip|gz|tgz|bz2|xz|tar|7z|csv|txt|json)$", "", archive.filename)


def size_text(size: int | None) -> str:
    """
    >>> size_text(346663984), size_text(None)
    ('347 MB', 'size not published')
    """
    if size is None:
        return "size not published"
    return f"{size / 1e9:.3g} GB" if size >= 999.5e6 else f"{size / 1e6:.3g} MB"


def by_hand(info: DatasetInfo, archive: Archive, data_root: Path | None) -> str:
    """What to type on a machine with a network, and then here."""
    where = "DIR" if data_root is None else shlex.quote(str(data_root))
    only = "" if archive is info.archives[0] else f" --only {archive_name(archive)}"
    kind, _, value = archive.checksum.partition(":")
    check = f"its {kind} is {value}" if value else "no checksum of it is published"
    return (
        f"By hand: curl -L -C - -o {archive.filename} {archive.url}   ({check})\n"
        f"then here: evalkit download {info.name}{only} --data-root {where} --from {archive.filename}"
    )


def _silent(what: str, done: int, total: int | None) -> None:
    pass


def _one(
    info: DatasetInfo,
    archive: Archive,
    home: Path,
    data_root: Path,
    progress: Progress,
    source: str | os.PathLike[str] | None,
    keep: bool,
    pause: float,
) -> Fetched:
    work = home / ".download"
    record = work / f"{archive.filename}.json"
    before = _still_there(record, home)
    if before is not None:
        return Fetched(archive.filename, home, before["sha256"], before["verified"], before["files"], "already there")
    try:
        work.mkdir(parents=True, exist_ok=True)
        if source is not None:
            path = _from_source(archive, Path(source))
            sha256 = check(path, archive, progress)
        else:
            path = work / archive.filename
            there = path.exists()
            sha256 = check(path, archive, progress) if there else _fetch_checked(archive, path, progress, pause)
        staged = Path(tempfile.mkdtemp(prefix="unpack-", dir=work))
        try:
            if archive.filename.lower().endswith(PLAIN):
                shutil.copyfile(path, staged / archive.filename)
                files = 1
            else:
                files = unpack(path, staged, progress)
            entries = sorted(p.name for p in staged.iterdir())
            target = home / archive.folder if archive.folder not in ("", ".") else home
            _merge(staged, target)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{info.name}: {archive.filename}: {error.strerror or error} ({home})") from error
    except DataError as error:
        raise DataError(f"{info.name}: {error}\n{by_hand(info, archive, data_root)}") from error
    verified = bool(archive.checksum)
    content = {
        "url": archive.url,
        "filename": archive.filename,
        "bytes": path.stat().st_size,
        "sha256": sha256,
        "published": archive.checksum,
        "verified": verified,
        "files": files,
        "entries": [str(PurePosixPath(archive.folder or ".") / e) for e in entries],
    }
    _write_json(record, content)
    if source is None and not keep:
        path.unlink()
    if verified:
        note = f"{archive.checksum.partition(':')[0]} as published"
    else:
        note = f"no published checksum; fetched sha256 {sha256} recorded in {record}"
    return Fetched(archive.filename, home, sha256, verified, files, note)


def _still_there(record: Path, home: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(record.read_text())
        if all((home / e).exists() for e in content["entries"]) and content["entries"]:
            return {k: content[k] for k in ("sha256", "verified", "files")}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _from_source(archive: Archive, source: Path) -> Path:
    path = source / archive.filename if source.is_dir() else source
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return path


def _write_json(path: Path, content: dict[str, Any]) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(new, path)


# -- checking ---------------------------------------------------------------------------------------------------------


def check(path: Path, archive: Archive, progress: Progress = _silent) -> str:
    """Compare a file with the archive's published checksum, if there is one; its sha256.

    Raises:
        DataError: it differs.
    """
    kind, _, wanted = archive.checksum.partition(":")
    if archive.checksum and (kind not in ("sha256", "sha1", "md5") or not wanted):
        raise DataError(f"checksum {archive.checksum!r} of {archive.filename} is not sha256:, sha1: or md5:")
    sha256 = hashlib.sha256()
    other = hashlib.new(kind, usedforsecurity=False) if wanted else None
    size, done = path.stat().st_size, 0
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            sha256.update(chunk)
            if other:
                other.update(chunk)
            done += len(chunk)
            progress(f"checking {archive.filename}", done, size)
    if other and other.hexdigest() != wanted.lower():
        raise DataError(
            f"{path}: wrong checksum: {kind} is {other.hexdigest()}, published is {wanted}. "
            "The file is damaged or was changed by its publisher: remove it and fetch it again"
        )
    return sha256.hexdigest()


# -- fetching ---------------------------------------------------------------------------------------------------------


class _Transient(Exception):
    """Worth another try."""


def _fetch_checked(archive: Archive, path: Path, progress: Progress, pause: float, again: bool = True) -> str:
    """Fetch to ``path``; its sha256. A resumed file with a wrong checksum is fetched once more from its beginning."""
    part = path.with_name(path.name + ".part")
    resumed = fetch(archive, part, progress, pause)
    try:
        sha256 = check(part, archive, progress)
    except DataError:
        part.unlink()
        _validator_file(part).unlink(missing_ok=True)
        if again and resumed:
            return _fetch_checked(archive, path, progress, pause, again=False)
        raise
    os.replace(part, path)
    _validator_file(part).unlink(missing_ok=True)
    return sha256


def fetch(archive: Archive, part: Path, progress: Progress = _silent, pause: float = 1.0) -> bool:
    """Download to ``part``, going on with what is there; whether anything earlier was kept.

    What is there is kept only if the server confirms, by ETag or date, that it still has the same file (or a published
    checksum will tell afterwards).

    Raises:
        DataError: the server refuses, or cannot be reached in `TRIES` tries without progress.
    """
    if urllib.parse.urlsplit(archive.url).scheme not in ("http", "https"):
        raise DataError(f"{archive.url}: only http and https addresses are fetched")
    resumed = part.exists() and part.stat().st_size > 0
    failures, wait = 0, pause
    while True:
        size = part.stat().st_size if part.exists() else 0
        try:
            _get(archive, part, progress)
            return resumed
        except _Transient as error:
            progressed = part.exists() and part.stat().st_size > size
            failures, wait = (1, pause) if progressed else (failures + 1, wait * 2)
            if failures >= TRIES:
                raise DataError(f"{archive.url} cannot be fetched: {error}") from error
            resumed = resumed or progressed
            time.sleep(wait)


def _get(archive: Archive, part: Path, progress: Progress) -> None:
    have = part.stat().st_size if part.exists() else 0
    validator = _read_validator(part)
    headers = {"User-Agent": "evalkit", "Accept-Encoding": "identity"}
    if have and (validator or archive.checksum):
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    try:
        response = urllib.request.urlopen(urllib.request.Request(archive.url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing after what we have: it is complete, or it is not the same file
            total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if total and int(total[1]) == have:
                return
            part.unlink()
            raise _Transient("the server's file is shorter than what was fetched before") from error
        if error.code in (408, 425, 429) or error.code >= 500:
            raise _Transient(f"the server answers {error.code} {error.reason}") from error
        raise DataError(f"{archive.url}: the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _Transient(f"no connection ({error.reason})") from error
    except (http.client.HTTPException, OSError) as error:
        raise _Transient(f"no connection ({type(error).__name__}: {error})") from error
    with response:
        _receive(archive, response, part, have if "Range" in headers else 0, progress)


def _receive(archive: Archive, response: Any, part: Path, have: int, progress: Progress) -> None:
    appended = have if response.status == 206 else 0
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not found or int(found[1]) != have:
            part.unlink(missing_ok=True)
            raise _Transient("the server sent another range than asked for")
    etag, date = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
    _validator_file(part).write_text(etag if etag and not etag.startswith("W/") else date)
    length = response.headers.get("Content-Length")
    total = None if length is None else appended + int(length)
    size = total or archive.bytes or 0
    _need_space(part.parent, 2 * size - appended)  # to fetch it, and to unpack at least as much
    done = appended
    with part.open("ab" if appended else "wb") as f:
        while chunk := _read(response):
            f.write(chunk)
            done += len(chunk)
            progress(f"fetching {archive.filename}", done, total or archive.bytes)
    if total is not None and done < total:
        raise _Transient(f"the connection ended after {done:,} of {total:,} bytes")


def _read(response: Any) -> bytes:
    try:
        return response.read(_CHUNK)
    except (http.client.HTTPException, OSError) as error:
        raise _Transient(f"the connection broke ({type(error).__name__}: {error})") from error


def _validator_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _read_validator(part: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = _validator_file(part).read_text()
        return text if text.isprintable() else ""
    return ""


def _need_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DataError(f"{folder}: the disk is too full: {size_text(size)} needed, {size_text(free)} free")


# -- unpacking --------------------------------------------------------------------------------------------------------


def unpack(path: Path, folder: Path, progress: Progress = _silent) -> int:
    """Unpack a zip, tar or 7z archive into the empty ``folder``; the number of files.

    Only plain files and folders are made. Members with absolute names, ``..``, links and device files make the whole
    archive be refused, as does one that grows beyond `MAX_RATIO` times its size or `MAX_MEMBERS` members.

    Raises:
        DataError: unsafe, damaged, of another format, or 7z without py7zr. OSError: the disk.
    """
    limit = path.stat().st_size * MAX_RATIO + FREE_BYTES
    with path.open("rb") as head:
        if head.read(6) == b"7z\xbc\xaf\x27\x1c":
            return _unpack_7z(path, folder, limit, progress)
    written = files = 0
    try:
        for number, (name, stream) in enumerate(_members(path, folder, limit)):
            if number >= MAX_MEMBERS:
                raise DataError(f"{path}: more than {MAX_MEMBERS:,} members: refused")
            target = folder / _safe(path, name)
            if stream is None:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with stream, target.open("wb") as f:
                while chunk := stream.read(_CHUNK):
                    written += len(chunk)
                    if written > limit:
                        raise DataError(_too_large(path, limit))
                    f.write(chunk)
            files += 1
            progress(f"unpacking {path.name}", written, None)
    except _DAMAGE as error:
        raise DataError(f"{path}: cannot be unpacked ({type(error).__name__}: {error})") from error
    except OSError as error:
        if error.errno is None:  # gzip and bz2 report damage this way
            raise DataError(f"{path}: damaged ({error})") from error
        raise
    if not files:
        raise DataError(f"{path}: holds no file")
    return files


def _members(path: Path, folder: Path, limit: int) -> Iterator[tuple[str, IO[bytes] | None]]:
    with path.open("rb") as f:
        is_zip = f.read(2) == b"PK"
    if is_zip:
        with zipfile.ZipFile(path) as z:
            members = z.infolist()
            total = sum(m.file_size for m in members)
            if total > limit:
                raise DataError(_too_large(path, limit))
            for m in members:
                _safe(path, m.filename)
                kind = stat.S_IFMT(m.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise DataError(f"{path}: member {m.filename!r} is a link or a device file: refused")
            _need_space(folder, total)
            for m in members:
                yield m.filename, None if m.is_dir() else z.open(m)
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as t:
            for entry in t:
                _safe(path, entry.name)
                if not (entry.isfile() or entry.isdir()):
                    raise DataError(f"{path}: member {entry.name!r} is a link or a device file: refused")
                if hasattr(tarfile, "data_filter"):  # Python 3.11.4: a second opinion
                    tarfile.data_filter(entry, str(folder))
                yield entry.name, None if entry.isdir() else t.extractfile(entry)
            # tarfile stops at its end marker; the compressed stream is only checked against its CRC at the very end.
            rest = 0
            while t.fileobj and (chunk := t.fileobj.read(_CHUNK)):
                rest += len(chunk)
                if rest > limit:
                    raise DataError(_too_large(path, limit))
    else:
        raise DataError(f"{path}: neither a zip nor a tar archive; is it an error page saved under that name?")


def _unpack_7z(path: Path, folder: Path, limit: int, progress: Progress) -> int:
    """As `unpack`. py7zr writes the files itself: it reads a solid archive from its beginning to its end only.

    Sizes are checked as the archive declares them, and it cannot unpack to more than it declares.
    """
    try:
        import py7zr
    except ImportError as error:
        raise DataError(
            f"{path}: 7z archives need py7zr (pip install 'evalkit-audio[7z]'), or unpack it with 7-Zip: "
            f"7z x {shlex.quote(str(path))}"
        ) from error
    try:
        with py7zr.SevenZipFile(path) as z:
            members = z.list()
            if len(members) > MAX_MEMBERS:
                raise DataError(f"{path}: more than {MAX_MEMBERS:,} members: refused")
            for m in members:
                _safe(path, m.filename)
                if not (m.is_file or m.is_directory) or m.is_symlink:
                    raise DataError(f"{path}: member {m.filename!r} is a link or a device file: refused")
            total = sum(m.uncompressed or 0 for m in members)
            if total > limit:
                raise DataError(_too_large(path, limit))
            _need_space(folder, total)
            progress(f"unpacking {path.name}", 0, total)
            z.extractall(folder)
            progress(f"unpacking {path.name}", total, total)
    except (DataError, OSError):
        raise
    except Exception as error:  # py7zr raises of many kinds for a damaged archive
        raise DataError(f"{path}: cannot be unpacked ({type(error).__name__}: {error})") from error
    files = sum(not m.is_directory for m in members)
    if not files:
        raise DataError(f"{path}: holds no file")
    return files


def _safe(path: Path, name: str) -> PurePosixPath:
    """A member's name, relative and below the folder on every system."""
    windows = PureWindowsPath(name)
    if not name or "\0" in name or windows.drive or windows.root or ".." in windows.parts:
        raise DataError(f"{path}: member {name!r} leads out of the folder: refused")
    return PurePosixPath(name)


def _too_large(path: Path, limit: int) -> str:
    return f"{path}: unpacks to more than {size_text(limit)}, {MAX_RATIO} times its size: refused"


def _merge(staged: Path, target: Path) -> None:
    """Move everything into place, file by file where a folder is there already."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(staged.iterdir()):
        place = target / entry.name
        if entry.is_dir() and place.is_dir():
            _merge(entry, place)
        else:
            os.replace(entry, place)
