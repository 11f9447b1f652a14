"""Image files of all common kinds, written byte by byte if Pillow cannot write them.

for kind in ZOO.values():
    data, shown = kind.data, kind.shown
"""

import base64
import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.input_pipeline.images import pixels

WIDTH, HEIGHT = 40, 28
ORIENTATION = 0x0112
# A gray gradient of 16x16, arithmetic-coded by libjpeg-turbo's jpegtran.
_ARITHMETIC = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19i"
    "Z2hnPk1xeXBkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2Nj"
    "Y2NjY2NjY2P/yQARCAAQABADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD+/wAe86CVASO380TQ/9k="
)


@dataclass(frozen=True)
class Kind:
    """An image file and its expected pixels.

    Attributes:
      data: the file's bytes.
      shown: [height, width, 3] uint8.
      image_format: format in the record: "jpeg" or "png".
      passes: whether the record has the file's bytes unchanged.
      is_lossy: whether decoded pixels equal `shown` only up to rounding.
    """

    data: bytes
    shown: np.ndarray
    image_format: str
    passes: bool = False
    is_lossy: bool = False


def saved(image: Image.Image, image_format: str, **options) -> bytes:
    """Returns the bytes of an image file that Pillow writes."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def seen(data: bytes) -> np.ndarray:
    """Returns the pixels that Pillow decodes, without rotation: [height, width, 3] uint8."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blends [height, width, 3] uint8 with white by alpha, [height, width] uint8."""
    share = alpha[..., None] / 255
    return np.round(rgb * share + 255 * (1 - share)).astype(np.uint8)


def photograph(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Returns an image as smooth as a photograph, which JPEG changes little."""
    return Image.fromarray(pixels(3, 6)).resize((width, height), Image.Resampling.BICUBIC)


def png(
    array: np.ndarray, depth: int, color: int, chunks: Sequence[tuple[bytes, bytes]] = (), interlaced: bool = False
) -> bytes:
    """Writes samples of `depth` bits, [height, width] or [height, width, channels], as a PNG of that color type."""
    height, width = array.shape[:2]
    samples = array.reshape(height, width, -1)
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    packed = b""
    for top, left, down, right in passes:
        for row in samples[top::down, left::right]:
            bits = "".join(f"{sample:0{depth}b}" for sample in row.ravel())
            bits += "0" * (-len(bits) % 8)
            packed += b"\0" + (int(bits, 2).to_bytes(len(bits) // 8, "big") if bits else b"")
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(packed)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, body) for name, body in parts)


def png_chunk(name: bytes, body: bytes) -> bytes:
    """Returns a chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def tiff(body: bytes, width: int, height: int, **tags: int) -> bytes:
    """Writes an uncompressed TIFF of one strip; `tags` are further tags with one SHORT each, such as t258=12."""
    entries = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 279: len(body)}
    entries.update({int(name[1:]): value for name, value in tags.items()})
    start = 8 + 2 + 12 * len(entries) + 4 + 8
    bits = entries[258]
    directory = struct.pack("<H", len(entries))
    for tag, value in sorted(entries.items()):
        if tag == 258 and entries[277] > 1:  # one number per sample, which does not fit into the entry
            directory += struct.pack("<HHII", 258, 3, entries[277], start - 8)
        else:
            directory += struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, start if tag == 273 else value)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + struct.pack("<4H", *[bits] * 4) + body


def bmp_rle(indices: np.ndarray, palette: np.ndarray) -> bytes:
    """Writes [height, width] palette indices as a run-length coded BMP."""
    height, width = indices.shape
    body = b""
    for row in indices[::-1]:
        for value in row:
            body += bytes((1, value))
        body += b"\0\0"
    body += b"\0\1"
    colors = b"".join(bytes((*color[::-1], 0)) for color in palette.tolist())
    start = 54 + len(colors)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 2835, 2835, len(palette), 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + colors + body


def without_segment(jpeg: bytes, marker: int) -> bytes:
    """Returns a JPEG without its first segment of that marker."""
    start = jpeg.index(bytes((0xFF, marker)))
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :]


def with_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    """Returns a JPEG with one more segment after its first one."""
    start = 4 + int.from_bytes(jpeg[4:6], "big")
    return jpeg[:start] + bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body + jpeg[start:]


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """Returns pixels rotated by an EXIF orientation."""
    if orientation > 4:
        array = array.swapaxes(0, 1)
    flips = {1: (), 2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)}[orientation]
    return np.flip(array, flips) if flips else array


def exif(orientation: object) -> bytes:
    """Returns EXIF data with that orientation."""
    data = Image.Exif()
    data[ORIENTATION] = orientation
    return data.tobytes()


def cmyk_profile() -> bytes:
    """Returns a CMYK ICC profile with dull inks: a table of CMYK to Lab, two steps per ink."""
    nodes = bytearray()
    for node in range(16):
        cyan, magenta, yellow, black = (node >> shift & 1 for shift in (3, 2, 1, 0))
        lightness = 100 * (1 - 0.45 * cyan) * (1 - 0.5 * magenta) * (1 - 0.1 * yellow) * (1 - 0.85 * black)
        fade = 1 - 0.9 * black
        a = fade * (-37 * cyan + 70 * magenta - 5 * yellow)
        b = fade * (-50 * cyan + 90 * yellow)
        nodes += bytes((round(lightness * 2.55), round(a + 128), round(b + 128)))
    straight = bytes(range(256))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + straight * 4 + bytes(nodes) + straight * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags = ((b"A2B0", table), (b"wtpt", white))
    offset = 128 + 4 + 12 * len(tags)
    directory, body = struct.pack(">I", len(tags)), b""
    for name, content in tags:
        content += bytes(-len(content) % 4)
        directory += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += struct.pack(">6H4s4sI", 2026, 1, 1, 0, 0, 0, b"acsp", b"APPL", 0) + bytes(8) + bytes(8) + bytes(4)
    header += struct.pack(">3i", 63190, 65536, 54061)
    return header + bytes(128 - len(header)) + directory + body


def _jpegs() -> dict[str, Kind]:
    image = photograph()
    rgb = np.asarray(image)
    gray = image.convert("L")
    plain = saved(image, "JPEG", quality=90)
    cmyk = saved(image.convert("CMYK"), "JPEG", quality=95)
    adobe = cmyk.index(b"Adobe")
    made = {
        "baseline": plain,
        "progressive": saved(image, "JPEG", progressive=True),
        "best quality": saved(image, "JPEG", quality=100, subsampling=0),
        "worst quality": saved(image, "JPEG", quality=5),
        "gray": saved(gray, "JPEG"),
        "4:4:4": saved(image, "JPEG", subsampling=0),
        "4:2:2": saved(image, "JPEG", subsampling=1),
        "4:1:1": saved(image, "JPEG", subsampling="4:1:1"),
        "restart markers": saved(image, "JPEG", restart_marker_blocks=1),
        "arithmetic": base64.b64decode(_ARITHMETIC),
        "stored as RGB": saved(image, "JPEG", keep_rgb=True),
        "no JFIF": without_segment(plain, 0xE0),
        "comment": saved(image, "JPEG", comment="ÿØ ÿÙ"),
        "embedded profile": saved(image, "JPEG", icc_profile=cmyk_profile()),
        "broken EXIF": saved(image, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        "orientation 1": saved(image, "JPEG", exif=exif(1)),
        "orientation 0": saved(image, "JPEG", exif=exif(0)),
        "orientation 9": saved(image, "JPEG", exif=exif(9)),
        "two pictures": saved(image, "MPO", save_all=True, append_images=[gray.convert("RGB")]),
        "trailing junk": plain + b"junk" * 100,
        "trailing JPEG": plain + saved(gray, "JPEG"),
        "1x1": saved(Image.new("RGB", (1, 1), "red"), "JPEG"),
        "1x9000": saved(Image.new("RGB", (1, 9000), "red"), "JPEG"),
        "9000x1": saved(Image.new("L", (9000, 1), 77), "JPEG"),
    }
    kinds = {f"jpeg, {name}": Kind(data, seen(data), "jpeg", True, True) for name, data in made.items()}
    kinds.update(
        {
            f"jpeg, orientation {i}": Kind(
                saved(image, "JPEG", quality=90, exif=exif(i)), turned(seen(plain), i), "jpeg", False, True
            )
            for i in range(2, 9)
        }
    )
    packet = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf tiff:Orientation='3'/></x:xmpmeta>"
    kinds["jpeg, orientation in XMP"] = Kind(
        with_segment(plain, 0xE1, packet.replace(b"'", b'"')), turned(seen(plain), 3), "jpeg", False, True
    )
    # The same samples, marked as YCCK.
    ycck = cmyk[: adobe + 11] + b"\2" + cmyk[adobe + 12 :]
    for name, data in (("CMYK", cmyk), ("CMYK without Adobe marker", without_segment(cmyk, 0xEE)), ("YCCK", ycck)):
        kinds[f"jpeg, {name}"] = Kind(data, seen(data), "jpeg", False, True)
    assert np.abs(seen(plain).astype(int) - rgb).mean() < 3
    return kinds


def _pngs() -> dict[str, Kind]:
    image = photograph()
    rgb = np.asarray(image)
    gray = np.asarray(image.convert("L"))
    ramp = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    alpha = (ramp % 256).astype(np.uint8)
    deep = ramp * 58 + 11
    deep_rgb = np.stack([deep, deep[::-1], deep[:, ::-1]], -1)
    palette = image.quantize(200)
    few = image.quantize(3)
    fade = bytes(range(0, 200))
    faded = on_white(
        np.asarray(palette.convert("RGB")), np.frombuffer(fade + b"\xff" * 56, np.uint8)[np.asarray(palette)]
    )

    def repeated(levels: np.ndarray) -> np.ndarray:
        return np.repeat(levels.astype(np.uint8)[..., None], 3, -1)

    kinds = {
        "RGB": Kind(saved(image, "PNG"), rgb, "png", True),
        "gray": Kind(saved(Image.fromarray(gray), "PNG"), repeated(gray), "png", True),
        "interlaced": Kind(png(rgb, 8, 2, interlaced=True), rgb, "png", True),
        "interlaced 1x1": Kind(png(rgb[:1, :1], 8, 2, interlaced=True), rgb[:1, :1], "png", True),
        "gamma": Kind(png(rgb, 8, 2, [(b"gAMA", struct.pack(">I", 100000))]), rgb, "png", True),
        "profile": Kind(saved(image, "PNG", icc_profile=b"no profile" * 20), rgb, "png", True),
        "trailing junk": Kind(saved(image, "PNG") + b"junk", rgb, "png", True),
        "white background chunk": Kind(png(rgb, 8, 2, [(b"bKGD", bytes(6))]), rgb, "png", True),
        "orientation 6": Kind(saved(image, "PNG", exif=exif(6)), turned(rgb, 6), "png"),
        "orientation in packed XMP": Kind(
            png(rgb, 8, 2, [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b'<x tiff:Orientation="6"/>'))]),
            turned(rgb, 6),
            "png",
        ),
        "palette": Kind(saved(palette, "PNG"), np.asarray(palette.convert("RGB")), "png"),
        "palette of 2 bits": Kind(saved(few, "PNG", bits=2), np.asarray(few.convert("RGB")), "png"),
        "palette, one transparent": Kind(
            saved(palette, "PNG", transparency=7),
            np.where((np.asarray(palette) == 7)[..., None], 255, np.asarray(palette.convert("RGB"))),
            "png",
        ),
        "palette, each faded": Kind(saved(palette, "PNG", transparency=fade), faded, "png"),
        "16 bits, gray": Kind(png(deep, 16, 0), repeated(deep >> 8), "png"),
        "16 bits, gray, one transparent": Kind(
            png(deep, 16, 0, [(b"tRNS", struct.pack(">H", deep[3, 3]))]),
            repeated(np.where(deep == deep[3, 3], 255, deep >> 8)),
            "png",
        ),
        "16 bits, RGB": Kind(png(deep_rgb, 16, 2), (deep_rgb >> 8).astype(np.uint8), "png"),
        "RGB, one transparent": Kind(
            png(rgb, 8, 2, [(b"tRNS", struct.pack(">3H", *rgb[5, 5].tolist()))]),
            np.where((rgb == rgb[5, 5]).all(-1, keepdims=True), 255, rgb).astype(np.uint8),
            "png",
        ),
        "RGBA": Kind(png(np.dstack([rgb, alpha]), 8, 6), on_white(rgb, alpha), "png"),
        "RGBA, 16 bits": Kind(
            png(np.dstack([deep_rgb, alpha.astype(int) * 257]), 16, 6),
            on_white((deep_rgb >> 8).astype(np.uint8), alpha),
            "png",
        ),
        "gray with alpha": Kind(png(np.dstack([gray, alpha]), 8, 4), on_white(repeated(gray), alpha), "png"),
        "gray with alpha, 16 bits": Kind(
            png(np.dstack([deep, alpha.astype(int) * 257]), 16, 4), on_white(repeated(deep >> 8), alpha), "png"
        ),
        "animated": Kind(
            saved(image, "PNG", save_all=True, append_images=[Image.new("RGB", image.size, "red")]), rgb, "png"
        ),
    }
    for depth in (1, 2, 4):
        few_levels = ramp % 2**depth
        levels = repeated(few_levels * (255 // (2**depth - 1)))
        kinds[f"gray of {depth} bits"] = Kind(png(few_levels, depth, 0), levels, "png")
        kinds[f"gray of {depth} bits, one transparent"] = Kind(
            png(few_levels, depth, 0, [(b"tRNS", b"\0\1")]), np.where(few_levels[..., None] == 1, 255, levels), "png"
        )
    return {f"png, {name}": kind for name, kind in kinds.items()}


def _others() -> dict[str, Kind]:
    image = photograph()
    rgb = np.asarray(image)
    gray = np.asarray(image.convert("L"))
    red = Image.new("RGB", image.size, "red")
    palette = image.quantize(64)
    paletted = np.asarray(palette.convert("RGB"))
    indices = np.asarray(palette)
    hole = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 3 == 0) * np.uint8(255)
    rgba = Image.fromarray(np.dstack([rgb, hole]))
    flat = on_white(rgb, hole)
    deep = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 58 + 11
    twelve = deep % 4096
    twelve_bits = "".join(f"{value:012b}" for value in twelve.ravel())
    size = (WIDTH, HEIGHT)
    colors = np.array(palette.getpalette()[: 64 * 3]).reshape(-1, 3)

    def repeated(levels: np.ndarray) -> np.ndarray:
        return np.repeat(levels.astype(np.uint8)[..., None], 3, -1)

    exact = {
        "gif": (saved(palette, "GIF"), paletted),
        "gif, not interlaced": (saved(palette, "GIF", interlace=0), paletted),
        "gif, one transparent": (
            saved(palette, "GIF", transparency=int(indices[0, 0])),
            np.where((indices == indices[0, 0])[..., None], 255, paletted).astype(np.uint8),
        ),
        "gif, animated": (saved(palette, "GIF", save_all=True, append_images=[red]), paletted),
        "bmp, 24 bits": (saved(image, "BMP"), rgb),
        "bmp, palette": (saved(palette, "BMP"), paletted),
        "bmp, gray": (saved(Image.fromarray(gray), "BMP"), repeated(gray)),
        "bmp, black and white": (saved(image.convert("1"), "BMP"), np.asarray(image.convert("1").convert("RGB"))),
        "bmp, unused fourth byte": (saved(rgba, "BMP"), rgb),
        "bmp, run lengths": (bmp_rle(indices, colors), paletted),
        "webp, lossless": (saved(image, "WEBP", lossless=True), rgb),
        "webp, lossless, alpha": (saved(rgba, "WEBP", lossless=True, exact=True), flat),
        "webp, lossless, animated": (
            saved(image, "WEBP", lossless=True, save_all=True, append_images=[red, image]),
            rgb,
        ),
        "webp, lossless, orientation 8": (saved(image, "WEBP", lossless=True, exif=exif(8)), turned(rgb, 8)),
        "tiff": (saved(image, "TIFF"), rgb),
        "tiff, LZW": (saved(image, "TIFF", compression="tiff_lzw"), rgb),
        "tiff, deflate": (saved(image, "TIFF", compression="tiff_adobe_deflate"), rgb),
        "tiff, pages": (saved(image, "TIFF", save_all=True, append_images=[red]), rgb),
        "tiff, palette": (saved(palette, "TIFF"), paletted),
        "tiff, alpha": (saved(rgba, "TIFF"), flat),
        "tiff, fax": (
            saved(image.convert("1"), "TIFF", compression="group4"),
            np.asarray(image.convert("1").convert("RGB")),
        ),
        "tiff, CMYK": (saved(image.convert("CMYK"), "TIFF"), rgb),
        "tiff, CMYK, LZW": (saved(image.convert("CMYK"), "TIFF", compression="tiff_lzw"), rgb),
        "tiff, 8 bits, white is zero": (tiff(gray.tobytes(), *size, t262=0), repeated(255 - gray)),
        "tiff, 12 bits": (
            tiff(int(twelve_bits, 2).to_bytes(len(twelve_bits) // 8, "big"), *size, t258=12),
            repeated(twelve >> 4),
        ),
        "tiff, 16 bits": (tiff(deep.astype("<u2").tobytes(), *size, t258=16), repeated(deep >> 8)),
        "tiff, 16 bits, LZW": (
            saved(Image.fromarray(deep.astype(np.uint16)), "TIFF", compression="tiff_lzw"),
            repeated(deep >> 8),
        ),
        "tiff, 16 bits, white is zero": (
            tiff(deep.astype("<u2").tobytes(), *size, t258=16, t262=0),
            repeated(255 - (deep >> 8)),
        ),
        "tiff, 16 bits, RGB": (
            tiff(np.stack([deep, deep, deep[::-1]], -1).astype("<u2").tobytes(), *size, t258=16, t262=2, t277=3),
            (np.stack([deep, deep, deep[::-1]], -1) >> 8).astype(np.uint8),
        ),
        "tiff, premultiplied": (
            tiff(np.dstack([rgb * (hole[..., None] > 0), hole]).tobytes(), *size, t262=2, t277=4, t338=1),
            flat,
        ),
        "tiff, unused fourth sample": (
            tiff(np.dstack([rgb, hole]).tobytes(), *size, t262=2, t277=4, t338=0),
            rgb,
        ),
        "jpeg 2000": (saved(image, "JPEG2000"), rgb),
        "ppm": (saved(image, "PPM"), rgb),
        "pgm, 16 bits": (b"P5 %d %d 65535 " % size + deep.astype(">u2").tobytes(), repeated(deep >> 8)),
    }
    for i in range(2, 9):
        exact[f"tiff, orientation {i}"] = (saved(image, "TIFF", tiffinfo={274: i}), turned(rgb, i))
    exact["tiff, LZW, orientation 6"] = (
        saved(image, "TIFF", compression="tiff_lzw", tiffinfo={274: 6}),
        turned(rgb, 6),
    )
    kinds = {name: Kind(data, shown, "png") for name, (data, shown) in exact.items()}
    lossy = {
        "webp": saved(image, "WEBP", quality=90),
        "webp, animated": saved(image, "WEBP", quality=90, save_all=True, append_images=[red, image]),
        "avif": saved(image, "AVIF", quality=90),
    }
    kinds.update({name: Kind(data, seen(data), "jpeg", False, True) for name, data in lossy.items()})
    fade = Image.linear_gradient("L").resize(image.size)  # smooth, so that JPEG changes it little
    data = saved(Image.merge("RGBA", (*image.split(), fade)), "WEBP", quality=90)
    with Image.open(io.BytesIO(data)) as opened:
        shown = np.asarray(opened)
    kinds["webp, alpha"] = Kind(data, on_white(shown[..., :3], shown[..., 3]), "jpeg", False, True)
    return kinds


ZOO: dict[str, Kind] = {**_jpegs(), **_pngs(), **_others()}
