"""What a file is by its bytes, where no decoder reads it as an image. Imports neither Pillow nor TensorFlow."""

import re
import struct
from typing import NamedTuple

_SNIFFED = 1024
# By the first bytes: whitespace stripped, lower case.
_KINDS = tuple(
    (re.compile(beginning, re.DOTALL), kind)
    for beginning, kind in (
        (rb"(<!--.*?-->\s*)?<(!doctype html|html|head|body|title|script)", "HTML, not an image"),
        (rb"(<[?!].*?)?<svg", "SVG, a drawing without pixels: save it as PNG"),
        (rb"<\?xml", "XML, not an image"),
        (rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", "HEIC, which Pillow cannot read: save it as JPEG"),
        (rb"....ftyp(?!avi[fs])", "a video, not an image"),
        (rb"\xff\x0a|\x00\x00\x00\x0cjxl ", "JPEG XL, which Pillow cannot read: save it as JPEG or PNG"),
        (rb"ii\xbc", "JPEG XR, which Pillow cannot read: save it as JPEG or PNG"),
        (rb"\x00\x00\x01\x00[^\x00]", "an icon of several sizes: save it as PNG"),
        (rb"8bps", "a Photoshop document: save it as PNG"),
        (rb"(?s:.{128})dicm", "DICOM, a medical image: save it as PNG"),
        (rb"v/1\x01|#\?r(adiance|gbe)", "an image of high dynamic range (EXR or HDR): save it as PNG"),
        (rb"dds ", "a texture (DDS): save it as PNG"),
        (rb"simple  =", "FITS, astronomical data: save it as PNG"),
        (rb"%!ps", "PostScript, a drawing without pixels: save it as PNG"),
        (rb"%pdf", "PDF, not an image"),
        (rb"pk\x03\x04|\x1f\x8b|rar!|7z\xbc\xaf", "a compressed archive, not an image"),
        (rb"version https://git-lfs", "a Git LFS pointer, not the image: run git lfs pull"),
        (rb"\x93numpy", "a NumPy array, not an image: save it as PNG"),
        (rb"\x89hdf", "HDF5, not an image: save the images as PNG"),
        (rb"\x08[\x01-\x17]\x12", "a serialized tensor, not an image: encode it with tf.io.encode_png"),
        (rb"[\[{]", "text, not an image"),
        (rb"\x00+\Z", "zero bytes, not an image"),
        (rb"\xff\xd8|\x89png|gif8|riff|bm|ii\*\x00|mm\x00\*|....ftyp|p[1-6]\s", "damaged or cut off in its header"),
    )
)
# Of image files that decoders know.
_IMAGES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8|BM|RIFF....WEBP|II\*\x00|MM\x00\*|P[1-6]\s|\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51"
    rb"|....ftypavi[fs]|\x00\x00\x00\x0cJXL ",
    re.DOTALL,
)
# Those of them that Pillow reads and TensorFlow does not.
_ONLY_CONVERTED = (
    (re.compile(rb"II\*\x00|MM\x00\*"), "TIFF"),
    (re.compile(rb"P[1-6]\s"), "PPM"),
    (re.compile(rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "AVIF"),
)
_HUFFMAN_CODED = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_JPEG_FRAME = struct.Struct(">B2xBHHB")  # process, precision, height, width, channels
_START_OF_SCAN, _APP0 = 0xDA, 0xE0
_JFIF_BYTES = 16  # of its segment without a thumbnail
# Segments that do not change how an image is shown: tables, restart interval, comment.
_NEUTRAL = (0xC4, 0xDB, 0xDD, 0xFE)
_JPEG_LS = 0xF7
_LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
_WITHOUT_LENGTH = (0x00, 0x01, *range(0xD0, 0xDA))  # markers that do not belong before the pixels
_HIERARCHICAL = (0xC5, 0xC6, 0xCD, 0xCE)


def is_image(data: bytes) -> bool:
    """Returns whether bytes begin like an image file of a common format."""
    return bool(_IMAGES.match(data))


def kind_of(data: bytes) -> str:
    """Returns what the bytes of an image that cannot be decoded are, and what to do; "" if unknown."""
    if unsupported := unsupported_jpeg(data):
        return unsupported
    start = data[:_SNIFFED].removeprefix(b"\xef\xbb\xbf").strip().lower()
    return next((kind for beginning, kind in _KINDS if beginning.match(start)), "")


def not_decoded_in_training(data: bytes) -> str:
    """Returns what the image of a record is that TensorFlow cannot decode, and what to do; "" if it is damaged."""
    for beginning, name in _ONLY_CONVERTED:
        if beginning.match(data):
            return f"the image is {name}, which training does not decode; `convoy convert --tfrecords` does"
    kind = kind_of(data)
    return "" if not kind or kind.startswith("damaged") else f"the image is {kind}"


def unsupported_jpeg(data: bytes) -> str:
    """Returns which kind of JPEG that common decoders lack this is, and what to do; "" for other data."""
    header = jpeg_header(data)
    if not header:
        return ""
    if header.process == _JPEG_LS:
        return "JPEG-LS, which Pillow cannot read: save it as PNG"
    if header.process in _LOSSLESS:
        return "a lossless JPEG, which few programs read: save it as PNG"
    if header.process in _HIERARCHICAL:
        return "a hierarchical JPEG, which few programs read: save it as a baseline JPEG"
    if header.precision != 8:
        return f"a JPEG of {header.precision} bits per channel, which few programs read: save it with 8 bits"
    if header.channels not in (1, 3, 4):
        return f"a JPEG of {header.channels} channels, neither gray, RGB nor CMYK: save it as RGB"
    return ""


class JpegHeader(NamedTuple):
    """Header of a JPEG up to its first pixels (ITU-T T.81, B.2.2).

    Attributes:
      process: marker of the frame header, such as 0xC0 for baseline.
      precision: bits per channel.
      size: width and height in pixels.
      channels: number of color components.
      is_plain: whether all other segments are JFIF's, tables and comments: no orientation, profile or color transform.
    """

    process: int
    precision: int
    size: tuple[int, int]
    channels: int
    is_plain: bool

    @property
    def is_common(self) -> bool:
        """Whether every decoder supports it: gray or color, Huffman-coded, 8 bits."""
        return self.process in _HUFFMAN_CODED and self.precision == 8 and self.channels in (1, 3)


def jpeg_header(data: bytes) -> JpegHeader | None:
    """Returns the header of a JPEG; None for other data, and without a frame header."""
    frame, is_plain = None, True
    at = 2 if data.startswith(b"\xff\xd8") else len(data)
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if marker in _NEUTRAL:
            pass
        elif marker == 0xFF:  # fill
            at += 1
            continue
        elif marker == _JPEG_LS or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            is_plain &= frame is None
            frame = frame or at
        elif marker == _START_OF_SCAN or marker in _WITHOUT_LENGTH:
            is_plain &= marker == _START_OF_SCAN
            break
        else:
            is_plain &= marker == _APP0 and length >= _JFIF_BYTES and data.startswith(b"JFIF\0", at + 4)
        at += 2 + length
    else:
        is_plain = False  # its pixels are missing
    if frame is None:
        return None
    process, precision, height, width, channels = _JPEG_FRAME.unpack_from(data, frame + 1)
    return JpegHeader(process, precision, (width, height), channels, is_plain)
