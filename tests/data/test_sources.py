"""Each layout that users have is found; what cannot be told apart is refused with a sentence."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from facerec.data import archives
from facerec.data.csv_list import Columns
from facerec.data.discovery import find_faces
from facerec.data.splits import lfw_pairs
from facerec.errors import InputError
from tests.helpers.image_files import people, save

LFW_NAMES = ("Aaron_Peirsol", "Abel_Pacheco")


def lfw_tree(folder: Path) -> Path:
    for name in LFW_NAMES:
        for k in (1, 2):
            save(folder / name / f"{name}_{k:04d}.jpg", k)
    return folder


def archive(path: Path, members: dict[str, bytes | str]) -> Path:
    """A tar of files; a str is the target of a symbolic link."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def test_folder_per_person_at_any_depth(tmp_path: Path) -> None:
    people(tmp_path / "train", "Ann Bob", 2)
    save(tmp_path / "test/Ann/9.JPG", 1)
    save(tmp_path / "deep/er/Cy/1.webp", 1)
    save(tmp_path / ".hidden/No/1.png", 1)
    (tmp_path / "deep/er/Cy/notes.txt").write_text("no picture")
    (tmp_path / "deep/loop").symlink_to(tmp_path)
    faces = find_faces(str(tmp_path))
    assert faces.layout == "folders" and faces.root == tmp_path
    assert list(zip(faces.paths, faces.identities, strict=True)) == [
        ("deep/er/Cy/1.webp", "Cy"),
        ("test/Ann/9.JPG", "Ann"),
        ("train/Ann/0.png", "Ann"),
        ("train/Ann/1.png", "Ann"),
        ("train/Bob/0.png", "Bob"),
        ("train/Bob/1.png", "Bob"),
    ]


def test_sessions_below_people_are_not_taken_for_people(tmp_path: Path) -> None:
    people(tmp_path / "Ann", "monday tuesday")
    people(tmp_path / "Bob", "monday tuesday")
    with pytest.raises(InputError, match="one name"):
        find_faces(str(tmp_path))


@pytest.mark.parametrize(
    "inner",
    [
        "lfw-deepfunneled/lfw-deepfunneled",
        "lfw_funneled",
        "lfw/lfw_funneled",
        "lfw_home/lfw_funneled",
    ],
)
def test_lfw_trees(tmp_path: Path, inner: str) -> None:
    pictures = lfw_tree(tmp_path / inner)
    lists = pictures.parent if "home" in inner else tmp_path
    (lists / "pairs.txt").write_text(
        "2\t1\nAaron_Peirsol\t1\t2\nAaron_Peirsol\t1\tAbel_Pacheco\t2\n"
        "Abel_Pacheco\t1\t2\nAaron_Peirsol\t2\tAbel_Pacheco\t1\n"
    )
    for data in {tmp_path, pictures, pictures.parent}:
        faces = find_faces(str(data))
        assert faces.layout == faces.name == "lfw" and set(faces.identities) == set(LFW_NAMES)
        pairs = lfw_pairs(faces.root, "view2")
        assert [(same, fold) for _, _, same, fold in pairs] == [
            (True, 0),
            (False, 0),
            (True, 1),
            (False, 1),
        ]
        assert {path for pair in pairs for path in pair[:2]} == set(faces.paths)


def test_lfw_archive_is_unpacked_once_with_the_lists_beside_it(tmp_path: Path) -> None:
    tree = lfw_tree(tmp_path / "x/lfw_funneled")
    members = {
        f"lfw_funneled/{p.relative_to(tree)}": p.read_bytes() for p in sorted(tree.rglob("*.jpg"))
    }
    packed = archive(tmp_path / "lfw-funneled.tgz", {**members, "lfw_funneled/run.sh": b"rm"})
    (tmp_path / "pairsDevTest.txt").write_text(
        "1\nAbel_Pacheco\t1\t2\nAaron_Peirsol\t1\tAbel_Pacheco\t2\n"
    )
    cache = tmp_path / "cache"
    faces = find_faces(str(packed), cache)
    assert faces.layout == "lfw" and len(faces.paths) == 4
    assert len(lfw_pairs(faces.root, "devtest")) == 2 and not list(cache.rglob("run.sh"))
    first = (faces.root / faces.paths[0]).stat().st_mtime_ns
    assert find_faces(str(packed), cache) == faces
    assert (faces.root / faces.paths[0]).stat().st_mtime_ns == first


@pytest.mark.parametrize(
    "members",
    [
        {"../out.jpg": b"x"},
        {"/tmp/out.jpg": b"x"},
        {"a/../../out.jpg": b"x"},
        {"a/b.jpg": "/etc/passwd"},
    ],
)
def test_archives_that_reach_out_are_refused(tmp_path: Path, members: dict) -> None:
    packed = archive(tmp_path / "lfw-funneled.tgz", {"a/ok.jpg": b"x", **members})
    with pytest.raises(InputError, match="not to be trusted"):
        find_faces(str(packed), tmp_path / "cache")
    assert not list(tmp_path.rglob("*.jpg"))  # the draft is gone, too


def test_damaged_archive(tmp_path: Path) -> None:
    packed = archive(tmp_path / "lfw-funneled.tgz", {"a/ok.jpg": bytes(range(256)) * 200})
    packed.write_bytes(packed.read_bytes()[:200])
    with pytest.raises(InputError, match="damaged"):
        find_faces(str(packed), tmp_path / "cache")


def header(name: str, size: int = 1, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def pax(key: str, value: str, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A header of the member after it, or a global one."""
    line = f" {key}={value}\n".encode()
    length = next(n for n in range(len(line), len(line) + 9) if len(f"{n}") + len(line) == n)
    data = f"{length}".encode() + line
    return header("pax", len(data), kind) + data + bytes(-len(data) % 512)


IMAGE = header("a/b.jpg") + b"x" + bytes(511)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header("x", 3 * 2**30, tarfile.XHDTYPE), "a header of 3,221,225,472 bytes"),
        (header("x", 3 * 2**30, tarfile.GNUTYPE_LONGNAME), "a header of 3,221,225,472 bytes"),
        (pax("path", "a\0b.jpg") + IMAGE, "no name of a file"),
        (pax("path", "x" * 300 + ".jpg") + IMAGE, "too long a name"),
        (pax("path", "d/" * 3000 + "x.jpg") + IMAGE, "too long a name"),
        (IMAGE + header("a/b.jpg/c.jpg"), "both a file and a folder"),
        (header("a/b.jpg/c.jpg") + bytes(512) + IMAGE, "both a file and a folder"),
        (pax("GNU.sparse.map", "1,x,3") + IMAGE, "damaged"),
        (pax("GNU.sparse.map", "0,1") + IMAGE, "or sparse"),
        (pax("size", "-2048") + IMAGE, "damaged"),
        (pax("size", "9" * 30) + IMAGE, "unpack it yourself"),
        (pax("comment", "x") * 2000 + IMAGE, "damaged"),
        (lzma.compress(IMAGE)[:-20], "damaged"),
        (gzip.compress(IMAGE)[:40] + b"banana" * 9, "damaged"),
        (gzip.compress(IMAGE)[:-9], "damaged"),
    ],
)
def test_hostile_archives_are_one_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    packed = tmp_path / "faces.tgz"
    packed.write_bytes(content + bytes(1024))
    with pytest.raises(InputError, match=said) as caught:
        find_faces(str(packed), tmp_path / "cache")
    assert len(str(caught.value)) < len(str(packed)) + 300
    assert not list(tmp_path.rglob("*.jpg"))


def test_members_that_are_not_unpacked_count_too(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    packed = archive(tmp_path / "faces.tgz", {f"{i}.txt": b"" for i in range(4)})
    with pytest.raises(InputError, match="too large to be unpacked safely"):
        find_faces(str(packed), tmp_path / "cache")


def test_headers_of_all_members_do_not_add_up(tmp_path: Path, monkeypatch) -> None:
    packed, opened, opening = tmp_path / "faces.tar", [], archives._open
    headers = [pax(f"key {n}", "x", tarfile.XGLTYPE) + header("x.txt") + b"x" * 512 for n in "abc"]
    packed.write_bytes(b"".join(headers) + bytes(1024))
    monkeypatch.setattr(archives, "_open", lambda path: opened.append(opening(path)) or opened[0])
    kept = [len(opened[0].pax_headers) for _ in archives._members(packed)]
    assert len(kept) == 3 and max(kept) <= 1


def test_kaggle_face_recognition_dataset(tmp_path: Path) -> None:
    people(tmp_path / "Original Images/Original Images", "Brad_Pitt Courtney")
    for i in range(3):
        save(tmp_path / f"Faces/Faces/Brad Pitt_{i}.jpg", i)
    (tmp_path / "Dataset.csv").write_text("id,label\nBrad Pitt_0.jpg,Brad Pitt\n")
    faces = find_faces(str(tmp_path))
    assert faces.layout == "kaggle-faces" and len(faces.paths) == 6
    assert set(faces.identities) == {"Brad_Pitt", "Courtney"}
    (tmp_path / "Original Images").rename(tmp_path / ".gone")
    assert find_faces(str(tmp_path)).identities == ("Brad Pitt",) * 3


@pytest.mark.parametrize("person", ["ann", "n000001"])
def test_a_folder_called_faces_is_no_known_data_set(tmp_path: Path, person: str) -> None:
    save(tmp_path / f"Faces/{person}/IMG_1.jpg", 1)
    save(tmp_path / "Faces/bea/IMG_2.jpg", 2)
    faces = find_faces(str(tmp_path))
    assert (faces.layout, set(faces.identities)) == ("folders", {person, "bea"})
    save(tmp_path / "cyd/IMG_3.jpg", 3)
    assert set(find_faces(str(tmp_path)).identities) == {person, "bea", "cyd"}
    assert faces.notes == (f"{tmp_path.name}: a folder per person, 2 images of 2 people",)


def test_what_only_resembles_a_known_data_set_is_refused(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    for k in range(2):
        save(flat / f"Faces/IMG_{k}.jpg", k)
    with pytest.raises(InputError, match=r"holds the folder Faces, named as .* --layout folders"):
        find_faces(str(flat))
    save(flat / "cyd/1.jpg", 3)
    with pytest.raises(InputError, match=r"and 1 image that do not fit .*: --layout kaggle-faces"):
        find_faces(str(flat))
    assert set(find_faces(str(flat), layout="folders").identities) == {"Faces", "cyd"}
    known = find_faces(str(flat), layout="kaggle-faces")
    assert set(known.identities) == {"IMG"} and "1 image beside it left out" in known.notes[0]
    people(tmp_path / "orig/Original Images", "Ann Bea")
    people(tmp_path / "orig/other", "Cyd")
    with pytest.raises(InputError, match=r"Original Images, .* and 3 images that do not fit"):
        find_faces(str(tmp_path / "orig"))
    with pytest.raises(InputError, match="is not Kaggle's"):
        find_faces(str(tmp_path / "orig/other"), layout="kaggle-faces")


def test_one_odd_image_makes_no_people_of_kaggles_folders(tmp_path: Path) -> None:
    people(tmp_path / "Original Images/Original Images", "Ann Bea", 2)
    for k in range(2):
        save(tmp_path / f"Faces/Faces/Ann_{k}.jpg", k)
    assert set(find_faces(str(tmp_path)).identities) == {"Ann", "Bea"}
    save(tmp_path / "Faces/Faces/readme.png", 3)
    with pytest.raises(InputError, match=r"1 image that do not fit \(the first, .*readme\.png\)"):
        find_faces(str(tmp_path))


def test_images_beside_lfw_are_not_dropped(tmp_path: Path) -> None:
    pictures = lfw_tree(tmp_path / "a/lfw")
    people(tmp_path / "a/other", "cyd")
    with pytest.raises(InputError, match=r"4 images of LFW in lfw and 3 .* --data .*/lfw takes"):
        find_faces(str(tmp_path / "a"))
    assert find_faces(str(pictures)).layout == "lfw"
    assert len(find_faces(str(tmp_path / "a"), layout="folders").paths) == 7
    alone = find_faces(str(tmp_path / "a"), layout="lfw")
    assert len(alone.paths) == 4 and alone.notes == (
        "lfw: LFW, 4 images of 2 people; 3 images outside its person folders left out",
    )
    for k in (1, 2):  # named like LFW's, but nobody of LFW's 5,749 people
        save(tmp_path / f"b/lfw/Ann_A/Ann_A_000{k}.jpg", k)
    people(tmp_path / "b/other", "cyd")
    save(pictures / "Ann_A/Ann_A_0001.jpg", 1)
    with pytest.raises(InputError, match=r"1 that are not of it .*jpg\): --layout folders takes"):
        find_faces(str(pictures))  # --data would not help
    assert "1 of them in none of its lists" in find_faces(str(pictures), layout="lfw").notes[0]
    own = find_faces(str(tmp_path / "b"))
    assert (own.layout, set(own.identities)) == ("folders", {"Ann_A", "cyd"})
    lfw_tree(tmp_path / "c/lfw_funneled"), lfw_tree(tmp_path / "c/lfw-deepfunneled")
    with pytest.raises(InputError, match="4 images of LFW in lfw-deepfunneled and 4 that are not"):
        find_faces(str(tmp_path / "c"))


def test_an_archive_beside_images_is_in_doubt(tmp_path: Path) -> None:
    people(tmp_path, "Ann Bea")
    archive(tmp_path / "lfw.tgz", {"lfw/Aaron_Peirsol/Aaron_Peirsol_0001.jpg": b"x"})
    with pytest.raises(InputError, match=r"6 images and the archive lfw\.tgz: --data"):
        find_faces(str(tmp_path))
    assert len(find_faces(str(tmp_path), layout="folders").paths) == 6


def test_what_is_hidden_in_an_archive_is_said(tmp_path: Path) -> None:
    members = {f"{name}.jpg": b"x" for name in ("ann/1", "ann/.ipynb_checkpoints/1", "bea/1")}
    faces = find_faces(str(archive(tmp_path / "faces.tgz", members)), tmp_path / "cache")
    assert len(faces.paths) == 2 and "1 hidden image left out" in faces.notes[1]


def test_folders_that_are_in_doubt(tmp_path: Path) -> None:
    people(tmp_path / "a", "Ann Bea")
    save(tmp_path / "a/Ann/2019/1.png", 1)
    with pytest.raises(InputError, match="Ann holds images and the folder Ann/2019 with more"):
        find_faces(str(tmp_path / "a"))
    people(tmp_path / "b", "train test Bea")
    with pytest.raises(InputError, match=r"images in test, train/ itself: .* --layout folders"):
        find_faces(str(tmp_path / "b"))
    assert len(set(find_faces(str(tmp_path / "b"), layout="folders").identities)) == 3


def test_one_person_in_two_forms_of_unicode_is_one(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        people(tmp_path / form, unicodedata.normalize(form, "José Zoë"), 2)
        for folder in (tmp_path / form).iterdir():
            (tmp_path / "both" / folder.name).parent.mkdir(exist_ok=True)
            folder.rename(tmp_path / "both" / folder.name)
    for name in ("Ann_B", "ANN_B"):
        save(tmp_path / "both" / name / "1.png", 1)
    faces = find_faces(str(tmp_path / "both"))
    assert Counter(faces.identities) == {"José": 4, "Zoë": 4, "Ann_B": 1, "ANN_B": 1}
    assert "ANN_B and Ann_B look alike" in faces.notes[1]


def test_columns_of_a_csv_are_chosen_or_named(tmp_path: Path) -> None:
    sheet = tmp_path / "faces.csv"
    sheet.write_text("path,class,Subject\na.png,m,1\nb.png,f,2\nc.png,m,2\n")
    faces = find_faces(str(sheet), columns=Columns(label="subject"))
    assert faces.identities == ("1", "2", "2")
    assert faces.notes == (
        "faces: the image in column path, the person in column Subject, 3 images of 2 people",
    )
    with pytest.raises(InputError, match="no column 'name'; there are path, class, Subject"):
        find_faces(str(sheet), columns=Columns(label="name"))
    for heading in ("class,person_id", "label,PersonName", "label,class"):
        sheet.write_text(f"path,{heading}\na.png,m,Ann\n")
        with pytest.raises(InputError, match=r"could each say who .* --label-column"):
            find_faces(str(sheet))
    sheet.write_text("id,path,name\n7,a.png,Ann\n")
    assert find_faces(str(sheet)).identities == ("Ann",)
    for text in ("img,gender\na.png,m\n", ",img,age\n1,a.png,7\n"):
        sheet.write_text(text)
        with pytest.raises(InputError, match=r"no column is seen to say who .* --label-column"):
            find_faces(str(sheet))
    sheet.write_text("a,Ann\nb,Bob\n")  # images without suffix, or a heading?
    with pytest.raises(InputError, match=r"neither a heading .* --path-column and --label-column"):
        find_faces(str(sheet))
    sheet.write_text("path,label,label\na.png,m,Ann\n")
    with pytest.raises(InputError, match="2 columns 'label'"):
        find_faces(str(sheet), columns=Columns(label="label"))
    with pytest.raises(InputError, match="is no CSV: leave out --path-column"):
        find_faces(str(tmp_path), columns=Columns(label="label"))
    with pytest.raises(InputError, match="is no folder: leave out --layout"):
        find_faces(str(sheet), layout="folders")
    sheet.write_text("img,who\na.png,Ann\n")
    assert find_faces(str(sheet)).identities == ("Ann",)
    sheet.write_text("a.png,Ann\nb.png,Bob\n")
    assert "(no heading)" in find_faces(str(sheet)).notes[0]


def test_csv(tmp_path: Path) -> None:
    people(tmp_path / "pics", "x", 3)
    sheet = tmp_path / "faces.csv"
    sheet.write_text("identity,path\nAnn,pics/x/1.png\nBob,pics/x/0.png\n", encoding="utf-8-sig")
    faces = find_faces(str(sheet))
    assert (faces.paths, faces.identities) == (("pics/x/0.png", "pics/x/1.png"), ("Bob", "Ann"))
    sheet.write_text(f"{tmp_path}/pics/x/2.png,Ann\npics/x/0.png,Bob\n")
    assert set(find_faces(str(sheet)).paths) == {"pics/x/2.png", "pics/x/0.png"}
    sheet.write_text("id,label\npics/x/2.png,Ann\n")
    assert find_faces(str(sheet)).identities == ("Ann",)
    for text, complaint in (
        ("../../etc/passwd,Ann\n", r"leaves its folder by `..`"),
        ("pics\\..\\..\\x.png,Ann\n", r"leaves its folder"),
        ("http://x.org/a.png,Ann\n", "no path"),
        ("pics/x/0.png\n", "no heading, and 1 in its first line"),
        ("pics/x/0.png,Ann\npics/x/0.png,Bob\n", "line 2"),
        ("", "empty"),
        ("path,photo\na.png,b.png\n", "path, photo could each hold the path .* --path-column"),
        ("path,class,subject\na.png,m,1\n", "class, subject could each say .* --label-column"),
        ("path,age\na.png,7\n", "no column is seen to say who .* --label-column"),
        ("a.png,m,Ann\n", "no heading, and 3 in its first line"),
    ):
        sheet.write_text(text)
        with pytest.raises(InputError, match=complaint):
            find_faces(str(sheet))
    sheet.write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(InputError, match="CSV text"):
        find_faces(str(sheet))


def test_what_is_not_there_is_told(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    save(tmp_path / "flat/1.png", 1)
    (tmp_path / "file.pdf").write_text("x")
    for data, complaint in (
        ("nowhere/faces", f"nowhere/faces was not found in {tmp_path}"),
        ("/nowhere/faces", "/nowhere/faces was not found."),
        ("empty", "holds no images"),
        ("flat", "no folder per person"),
        ("file.pdf", "is a file"),
        ("https://example.org/faces", "URL"),
        (" ", "empty"),
        ("a\0b", "cannot be opened|not found"),
    ):
        with pytest.raises(InputError) as caught:
            find_faces(data)
        assert complaint.split("|")[0] in str(caught.value) or complaint.split("|")[-1] in str(
            caught.value
        )


def test_lfw_download_that_fails_says_how_to_do_it_by_hand(tmp_path: Path, monkeypatch) -> None:
    from sklearn import datasets

    def fail(**_):
        raise OSError("no network")

    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "fetch_lfw_people", fail)
    with pytest.raises(InputError, match=r"no network.*lfw-funneled\.tgz"):
        find_faces("lfw")
    lfw_tree(tmp_path / "lfw_home/lfw_funneled")
    assert find_faces("lfw").layout == "lfw"
