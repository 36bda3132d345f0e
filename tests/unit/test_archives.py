"""Unpacking archives that may lie: what leaves the folder, links, bombs, damage; resuming; the disk."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from unit.data_files import gta5

from udaseg.data import archives
from udaseg.data.archives import Unpacked, archive_names, unpack
from udaseg.data.layouts import DATASETS, places_of
from udaseg.errors import UserError

GTA5 = DATASETS["gta5"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UDASEG_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A folder with 01_images.zip and 01_labels.zip of four pairs."""
    folder = tmp_path / "zips"
    folder.mkdir()
    root = gta5(tmp_path / "original")
    for part in ("images", "labels"):
        with zipfile.ZipFile(folder / f"01_{part}.zip", "w") as archive:
            for path in sorted((root / part).iterdir()):
                archive.write(path, f"{part}/{path.name}")
    return folder


def put(folder: Path, name: str, content: bytes = b"x", mode: int = 0o100644, archive: str = "02_images.zip") -> None:
    info = zipfile.ZipInfo(name)
    info.filename = name  # as it is: the constructor cleans names
    info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(folder / archive, "a") as file:
        file.writestr(info, content)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_names_in_the_table() -> None:
    names = archive_names(GTA5)
    assert len(names) == 20 and {"01_images.zip", "10_images.zip", "07_labels.zip"} <= set(names)
    assert {"leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"} <= set(archive_names(DATASETS["cityscapes"]))
    assert archive_names(DATASETS["streets_source"]) == []


def test_unpack_and_again(packed: Path, home: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    done = unpack(GTA5, packed, progress=lambda *counts: seen.append(counts))
    assert done[:2] == (8, 0) and len(done.missing) == 18 and "02_images.zip" in done.missing
    assert files(home / "gta5") == files(tmp_path / "original") and seen[-1] == (8, 8)
    (home / "gta5/images/00002.png").unlink()
    half = (home / "gta5/labels/00003.png").read_bytes()[:20]
    (home / "gta5/labels/00003.png").write_bytes(half)
    untouched = (home / "gta5/images/00001.png").stat().st_mtime_ns
    assert unpack(GTA5, packed)[:2] == (2, 6)
    assert files(home / "gta5") == files(tmp_path / "original")
    assert (home / "gta5/images/00001.png").stat().st_mtime_ns == untouched


def test_a_file_of_other_content_is_kept_and_named(packed: Path, home: Path) -> None:
    unpack(GTA5, packed)
    own = home / "gta5/images/00002.png"
    own.write_bytes(b"mine")
    done = unpack(GTA5, packed)
    assert own.read_bytes() == b"mine" and done[:2] == (0, 8) and done.others == (own,)


def test_where_it_goes(home: Path, tmp_path: Path) -> None:
    assert places_of(GTA5)[0] == home / "gta5" and places_of(GTA5, tmp_path / "x") == [tmp_path / "x"]
    (home / "gta").mkdir(parents=True)
    assert places_of(GTA5)[0] == home / "gta"
    (home / "gta5").mkdir()
    assert places_of(GTA5)[0] == home / "gta5"
    gta5(home / "gta")  # where the data set is, nothing is unpacked a second time beside it
    assert places_of(GTA5)[0] == home / "gta"


def test_a_folder_around_everything_is_left_out(packed: Path, home: Path) -> None:
    put(packed, "gta5_part/images/00009.png", b"nine")
    unpack(GTA5, packed)
    assert (home / "gta5/images/00009.png").read_bytes() == b"nine"


def test_backslashes_are_folders(packed: Path, home: Path) -> None:
    put(packed, "images\\", b"")
    put(packed, "images\\00009.png", b"nine")
    unpack(GTA5, packed)
    assert (home / "gta5/images/00009.png").read_bytes() == b"nine"


def test_what_macos_adds_is_left_out(packed: Path, home: Path) -> None:
    put(packed, "gta5_part/images/00009.png", b"nine")
    put(packed, "__MACOSX/gta5_part/images/._00009.png", b"notes")
    unpack(GTA5, packed)
    assert (home / "gta5/images/00009.png").is_file() and not list(home.rglob("*MACOSX*"))


@pytest.mark.parametrize(
    ("name", "mode", "word"),
    [
        ("../evil.png", 0o100644, "leads out"),
        ("images/../../evil.png", 0o100644, "leads out"),
        ("/tmp/evil.png", 0o100644, "leads out"),
        ("images\\..\\..\\evil.png", 0o100644, "leads out"),
        ("C:/evil.png", 0o100644, "leads out"),
        ("images/link.png", 0o120777, "link"),
        ("images/pipe", 0o010644, "special"),
    ],
)
def test_unsafe_members_stop_everything(packed: Path, home: Path, name: str, mode: int, word: str) -> None:
    put(packed, "images/00005.png")
    put(packed, name, mode=mode)
    with pytest.raises(UserError, match=f"(?s)02_images.zip: .*{word}.*Nothing was unpacked"):
        unpack(GTA5, packed)
    assert not home.exists() and not Path("/tmp/evil.png").exists()


def test_bombs_and_doubles(packed: Path, home: Path) -> None:
    put(packed, "images/00005.png", bytes(5 * 2**20))
    with pytest.raises(UserError, match="claims to grow"):
        unpack(GTA5, packed)
    (packed / "02_images.zip").unlink()
    put(packed, "images/00005.png", b"a")
    with pytest.warns(UserWarning, match="Duplicate"):
        put(packed, "images/00005.png", b"b")
    with pytest.raises(UserError, match="one name twice"):
        unpack(GTA5, packed)
    assert not home.exists()


def test_the_stated_size_is_not_exceeded(packed: Path, home: Path) -> None:
    """A member that holds more than it says is cut there, and refused by its checksum."""
    put(packed, "images/00005.png", bytes(range(256)) * 64)
    path = packed / "02_images.zip"
    size = (256 * 64).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(UserError, match=r"00005.png is damaged"):
        unpack(GTA5, packed)
    assert not (home / "gta5/images/00005.png").exists()


def test_damage_keeps_what_was_written(packed: Path, home: Path, tmp_path: Path) -> None:
    path = packed / "01_labels.zip"
    content = bytearray(path.read_bytes())
    middle = content.index(b"IDAT", len(content) // 2)
    content[middle + 20 : middle + 30] = bytes(10)
    good, _ = path.read_bytes(), path.write_bytes(content)
    with pytest.raises(UserError, match=r"01_labels.zip: labels/0000\d.png is damaged.*again"):
        unpack(GTA5, packed)
    there = files(home / "gta5")
    assert 4 <= len(there) < 8 and not [name for name in there if "tmp" in name]
    path.write_bytes(good)
    assert unpack(GTA5, packed).kept == len(there)
    path.write_bytes(good[:-30])
    with pytest.raises(UserError, match="not a whole zip file"):
        unpack(GTA5, packed)


def test_too_little_disk(packed: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = sum(len(content) for content in files(packed.parent / "original").values())
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=need - 1))
    with pytest.raises(UserError, match="--root DIR on another disk"):
        unpack(GTA5, packed)
    assert not home.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=need))
    assert unpack(GTA5, packed).written == 8
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    assert unpack(GTA5, packed)[:2] == (0, 8)  # nothing to write needs no room


def test_interrupted_while_writing(packed: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy, calls = shutil.copyfileobj, []

    def interrupted(source: object, target: object, length: int) -> None:
        calls.append(0)
        if len(calls) == 3:
            target.write(b"half")  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        copy(source, target, length)  # type: ignore[arg-type]

    monkeypatch.setattr(shutil, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(GTA5, packed)
    assert list(files(home / "gta5")) == ["images/00001.png", "images/00002.png"]
    assert unpack(GTA5, packed)[:2] == (6, 2)


def test_what_is_not_there(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        unpack(GTA5, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"none of the archives of cityscapes: .*gtFine_trainvaltest\.zip.*https://"):
        unpack(DATASETS["cityscapes"], packed)
    with pytest.raises(UserError, match="no official archives"):
        unpack(DATASETS["streets_source"], packed)


def test_a_rar_file_is_named(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "archive_names", lambda spec: ["SYNTHIA.rar"])
    (packed / "SYNTHIA.rar").write_bytes(b"Rar!")
    with pytest.raises(UserError, match=r"SYNTHIA.rar is a RAR file"):
        unpack(GTA5, packed)
    (packed / "01_images.zip").rename(packed / "SYNTHIA.zip")
    assert unpack(GTA5, packed) == Unpacked(4, 0, ())


def test_encrypted(packed: Path) -> None:
    put(packed, "images/00005.png")
    path = packed / "02_images.zip"
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is encrypted"):
        unpack(GTA5, packed)
