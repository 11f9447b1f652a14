"""What a file is by its bytes, where no decoder reads it as an image. Imports neither Pillow nor TensorFlow."""

import re

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
_JPEG_LS = 0xF7
_LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
_WITHOUT_LENGTH = (0x00, 0x01, *range(0xD0, 0xDA))
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
    frame = _jpeg_frame(data)
    if not frame:
        return ""
    process, precision, channels = frame
    if process == _JPEG_LS:
        return "JPEG-LS, which Pillow cannot read: save it as PNG"
    if process in _LOSSLESS:
        return "a lossless JPEG, which few programs read: save it as PNG"
    if process in _HIERARCHICAL:
        return "a hierarchical JPEG, which few programs read: save it as a baseline JPEG"
    if precision != 8:
        return f"a JPEG of {precision} bits per channel, which few programs read: save it with 8 bits"
    if channels not in (1, 3, 4):
        return f"a JPEG of {channels} channels, neither gray, RGB nor CMYK: save it as RGB"
    return ""


def is_common_jpeg(data: bytes) -> bool:
    """Returns whether this is a gray or color JPEG that every decoder supports: Huffman-coded, 8 bits, not CMYK."""
    frame = _jpeg_frame(data)
    return frame is not None and frame[0] in _HUFFMAN_CODED and frame[1] == 8 and frame[2] in (1, 3)


def _jpeg_frame(data: bytes) -> tuple[int, int, int] | None:
    """Returns marker, precision and channels of a JPEG's frame header (ITU-T T.81, B.2.2); None without one."""
    at = 2 if data.startswith(b"\xff\xd8") else len(data)
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker == _JPEG_LS or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return marker, data[at + 4], data[at + 9]
        elif marker == 0xDA or marker in _WITHOUT_LENGTH:  # pixels, or nothing that belongs before them
            return None
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
