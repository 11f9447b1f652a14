"""Arrays of `.npz` files: as numpy writes them, and made to do harm."""

import pickle
import zipfile

import numpy as np
import pytest

from convoy.core.npz import opened, read_array


@pytest.mark.parametrize(
    "value",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.asfortranarray(np.arange(24).reshape(2, 3, 4)),
        np.float32(3.5),
        np.zeros((0, 5), np.int64),
        np.array([True, False]),
        np.array(["one", "three"]),
    ],
    ids=str,
)
def test_reads_what_numpy_writes(tmp_path, value):
    np.savez(tmp_path / "a.npz", value=value)
    with opened(tmp_path / "a.npz") as archive:
        found = read_array(archive, "value")
    np.testing.assert_array_equal(found, value)
    assert found.dtype == np.asarray(value).dtype


def npy(shape: str, content: bytes, dtype: str = "<f4") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


class Harm:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of the file was run')",)


@pytest.mark.parametrize(
    ("member", "compression"),
    [
        (npy("(4611686018427387904,)", b"\0" * 16), zipfile.ZIP_STORED),
        (npy("(4294967296, 4294967296, 2)", b""), zipfile.ZIP_STORED),
        (npy("(-1, -4)", b"\0" * 16), zipfile.ZIP_STORED),
        (npy("(2500000,)", b"\0" * 10_000_000), zipfile.ZIP_DEFLATED),
        (npy("(1,)", pickle.dumps(Harm()), dtype="|O"), zipfile.ZIP_STORED),
        (npy("(4,)", b"\0" * 15), zipfile.ZIP_STORED),
    ],
    ids=["2^62 values", "overflowing product", "negative sizes", "bomb", "code", "truncated"],
)
def test_refuses_what_is_larger_than_its_file_or_code(tmp_path, member, compression):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        archive.writestr("value.npy", member)
    with pytest.raises(ValueError, match="value"), opened(tmp_path / "a.npz") as archive:
        read_array(archive, "value")


def test_refuses_another_dtype_or_rank(tmp_path):
    np.savez(tmp_path / "a.npz", value=np.zeros((2, 3), np.int64))
    with opened(tmp_path / "a.npz") as archive:
        for expected in ({"dtype": np.int32}, {"dimensions": 1}):
            with pytest.raises(ValueError, match="value"):
                read_array(archive, "value", **expected)
