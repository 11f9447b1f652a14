"""Members of tar archives, compared with Python's tarfile, and damaged archives."""

import io
import tarfile

import pytest

from convoy.input_pipeline.convert.tar_members import TarError, read_members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write(path, contents, kind=tarfile.PAX_FORMAT, **options):
    """Writes files by name; a text in place of the content is the type of a member that is not a file."""
    with tarfile.open(path, "w", format=kind, **options) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content.encode(), "/etc/passwd"
                archive.addfile(member)
    return path


def members(path):
    with open(path, "rb") as file:
        return list(read_members(file))


@pytest.mark.parametrize("kind", FORMATS)
def test_members_are_those_of_tarfile(tmp_path, kind):
    names = ["a.jpg", "empty.cls", f"{'f' * 90}/{'d' * 90}.jpg", "ünïcode-名.jpg", "b.jpg"]
    if kind != "ustar":
        names.append("x" * 300)
    contents = {name: name.encode() * (i * 100) for i, name in enumerate(names)}
    path = write(tmp_path / "a.tar", contents, FORMATS[kind])
    data = path.read_bytes()
    assert {one.name: data[one.offset : one.offset + one.size] for one in members(path)} == contents
    with tarfile.open(path) as archive:
        expected = [(one.name, one.offset_data, one.size) for one in archive]
    assert [(one.name, one.offset, one.size) for one in members(path)] == expected


def test_times_with_fractions_and_global_headers_are_read_over(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 2000}) as archive:
        for name in ("a.jpg", "b.jpg"):
            member = tarfile.TarInfo(name)
            member.mtime, member.size = 0.5, 3
            archive.addfile(member, io.BytesIO(b"abc"))
    assert [(one.name, one.size) for one in members(path)] == [("a.jpg", 3), ("b.jpg", 3)]


def test_what_is_not_a_file_has_a_kind(tmp_path):
    kinds = {"link.jpg": "2", "hard.jpg": "1", "device.jpg": "3", "disk.jpg": "4", "pipe.jpg": "6", "folder": "5"}
    path = write(tmp_path / "a.tar", {**kinds, "a.jpg": b"abc"})
    found = {one.name.rstrip("/"): one.kind for one in members(path)}
    assert found.pop("a.jpg") == "" and set(found) == set(kinds) and all(found.values())


def test_joined_archives_are_read_to_the_end(tmp_path):
    parts = [write(tmp_path / f"{i}.tar", {f"{i}.jpg": b"abc"}).read_bytes() for i in range(3)]
    (tmp_path / "all.tar").write_bytes(b"".join(parts))
    assert [one.name for one in members(tmp_path / "all.tar")] == ["0.jpg", "1.jpg", "2.jpg"]


def test_an_archive_cut_off_anywhere_is_an_error(tmp_path):
    path = write(tmp_path / "a.tar", {"a.jpg": b"abc" * 300, "b" * 120: b"abc" * 300}, tarfile.GNU_FORMAT)
    whole = path.read_bytes()
    end = members(path)[-1].offset + 1024  # the padded data
    for length in (0, 1, 511, 512, 513, 1400, 1536, 2000, 2048, 2560, 3000, end - 1, end):
        path.write_bytes(whole[:length])
        with pytest.raises(TarError):
            members(path)
    path.write_bytes(whole[: end + 512])
    assert len(members(path)) == 2


@pytest.mark.parametrize(
    ("offset", "replacement"),
    [
        (0, b"\xff"),  # the name, so that the checksum is wrong
        (124, b"99999999999\0"),
        (148, b"zzzzzz\0 "),
        (1536, b"a" * 512),  # no header
    ],
)
def test_damage_is_an_error(tmp_path, offset, replacement):
    path = write(tmp_path / "a.tar", {"a.jpg": b"abc" * 300, "b.jpg": b"abc"})
    data = bytearray(path.read_bytes())
    data[offset : offset + len(replacement)] = replacement
    path.write_bytes(data)
    with pytest.raises(TarError):
        members(path)


def with_checksum(header):
    header = bytearray(header.ljust(512, b"\0"))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    ("kind", "size", "content"),
    [
        (b"x", b"00000000030\0", b"999999999999999999999999"),
        (b"x", b"00000000030\0", b"-5 path=x\n" + b"a" * 14),
        (b"x", b"00000000024\0", b"20 size=99999999999\n"),
        (b"x", b"00000000014\0", b"12 size=-1\n\0"),
        (b"L", b"77777777777\0", b""),
        (b"0", b"\x80" + b"\xff" * 11, b""),
        (b"0", b"\xff" * 12, b""),
    ],
)
def test_hostile_headers_are_errors(tmp_path, kind, size, content):
    first = bytearray(512)
    first[:1], first[124:136], first[156:157] = b"a", size, kind
    second = bytearray(512)
    second[:1], second[124:136], second[156:157] = b"b", b"00000000000\0", b"0"
    parts = [with_checksum(first), content.ljust(512, b"\0"), with_checksum(second), bytes(1024)]
    (tmp_path / "a.tar").write_bytes(b"".join(parts))
    with pytest.raises(TarError):
        members(tmp_path / "a.tar")
