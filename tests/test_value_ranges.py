"""Values of more than 8 bits: what the file says, what the user says, and what nobody says."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

import unitscope
from unitscope.images import DatasetSource, Skipped, decode_image, prepare
from unitscope.images.decoding import read_bytes
from unitscope.images.pixels import in_channels

SIZE = (40, 60)


def ramp(highest: int) -> np.ndarray:
    """Every brightness from black to white, in 16 bits."""
    return np.linspace(0, highest, SIZE[0] * SIZE[1]).round().astype(np.uint16).reshape(SIZE)


def png(values: np.ndarray, significant: int | None = None) -> bytes:
    """A 16-bit grey PNG written by hand, with or without the chunk sBIT."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    significant_bits = chunk(b"sBIT", bytes([significant])) if significant else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + significant_bits + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, **tags: tuple[int, float]) -> bytes:
    content, directory = io.BytesIO(), ImageFileDirectory_v2()
    for number, value in tags.values():
        directory[number] = value
    Image.fromarray(values).save(content, "TIFF", tiffinfo=directory)
    return content.getvalue()


def grey(content: bytes, value_range: tuple[float, float] | None = None) -> np.ndarray:
    return np.asarray(in_channels(read_bytes(content).pixels, 1, value_range)).astype(int)


def assert_ramp(values: np.ndarray) -> None:
    """From black to white in even steps, to half a grey."""
    assert np.abs(values.ravel() - np.linspace(0, 255, values.size)).max() <= 1


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("encode", [png, tiff])
def test_fewer_bits_in_16_bit_files_are_refused_until_the_user_says_the_range(encode: object, bits: int) -> None:
    content = encode(ramp(2**bits - 1))  # type: ignore[operator]
    with pytest.raises(Skipped, match=rf"16-bit integers up to {2**bits - 1}, .*--value-range LOW HIGH"):
        grey(content)
    assert_ramp(grey(content, (0, 2**bits - 1)))


@pytest.mark.parametrize("encode", [png, tiff])
def test_values_that_need_all_16_bits_are_16_bits(encode: object) -> None:
    assert_ramp(grey(encode(ramp(65535))))  # type: ignore[operator]
    assert grey(encode(np.zeros(SIZE, np.uint16))).max() == 0  # type: ignore[operator] # black is black in any range


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_tiff_that_says_its_range_is_believed(bits: int) -> None:
    white = 2**bits - 1
    assert_ramp(grey(tiff(ramp(white), high=(341, white))))
    assert_ramp(grey(tiff(ramp(white), high=(281, white))))
    with pytest.raises(Skipped, match="range isn't known"):  # a statistic of this picture alone
        grey(tiff(ramp(white), high=(281, white - 5)))


def test_a_tiff_of_twelve_bits_says_so() -> None:
    values = ramp(4095).reshape(-1, 2).astype(np.uint32)
    packed = (
        np.stack([values[:, 0] >> 4, (values[:, 0] & 15) << 4 | values[:, 1] >> 8, values[:, 1] & 255], 1)
        .astype(np.uint8)
        .tobytes()
    )
    entries = [(256, 4, SIZE[1]), (257, 4, SIZE[0]), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, SIZE[0]),
               (279, 4, len(packed))]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<I" if kind == 4 else "<HH", *((value,) if kind == 4 else (value, 0)))
        for tag, kind, value in entries
    )
    content = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory + b"\0\0\0\0"
    assert_ramp(grey(content))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_what_a_png_says_of_its_bits_is_read_in_both_ways_that_it_is_written(bits: int) -> None:
    values = ramp(2**bits - 1)
    assert_ramp(grey(png(values << (16 - bits), bits)))  # as the standard has it: scaled up
    assert_ramp(grey(png(values, bits)))  # as cameras' programs write it
    assert_ramp(grey(png((values * (65535 / (2**bits - 1))).round().astype(np.uint16), bits)))


def test_pgm_and_jpeg_2000_are_brought_to_16_bits_by_pillow(tmp_path: Path) -> None:
    header = f"P5 {SIZE[1]} {SIZE[0]} 4095\n".encode()
    assert_ramp(grey(header + ramp(4095).astype(">u2").tobytes()))
    Image.fromarray(ramp(20000)).save(tmp_path / "dark.jp2", irreversible=False)
    assert np.abs(grey((tmp_path / "dark.jp2").read_bytes()).max() - 78) <= 1


@given(st.integers(-(2**31), 2**31 - 2), st.integers(1, 2**20))
def test_integers_of_32_bits_are_spread_over_the_range_that_is_said(low: int, length: int) -> None:
    high = min(low + length, 2**31 - 1)
    values = np.array([[low, high, (low + high) // 2]], dtype=np.int64).astype(np.int32)
    image = Image.fromarray(values)
    with pytest.raises(Skipped, match="32-bit integers from .* range isn't known"):
        in_channels(image, 1)
    pixels = np.asarray(in_channels(image, 1, (low, high))).ravel().astype(int)
    assert pixels[0] == 0
    assert pixels[1] == 255
    assert abs(pixels[2] - 255 * (int(values[0, 2]) - low) / (high - low)) <= 0.5 + 1e-6


def test_floats_are_spread_clipped_and_refused_where_they_are_no_numbers() -> None:
    values = np.array([[-1, 0, 0.5, 1, 2, np.inf, -np.inf]], dtype=np.float32)
    assert np.asarray(in_channels(Image.fromarray(values), 1, (0, 1))).tolist() == [[0, 0, 128, 255, 255, 255, 0]]
    with pytest.raises(Skipped, match="floats from .* --value-range"):
        in_channels(Image.fromarray(values[:, :5]), 1)
    with pytest.raises(Skipped, match="no numbers"):
        in_channels(Image.fromarray(np.full((2, 2), np.nan, np.float32)), 3, (0, 1))
    assert_ramp(grey(tiff(ramp(65535).astype(np.float32) / 655.35, low=(340, 0.0), high=(341, 100.0))))


def test_eight_bits_are_eight_bits_whatever_the_range() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(np.asarray(in_channels(Image.fromarray(pixels), 1, (0, 4095))), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_of_16_bits_that_may_be_of_12_are_refused(channels: int) -> None:
    def colours(highest: int) -> bytes:
        values = np.repeat(ramp(highest)[..., None], 3, 2)
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        whole = png(ramp(1))
        header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 16, 2, 0, 0, 0)
        pieces = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
        return whole[:8] + b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in pieces)

    bright, dark = (read_bytes(colours(highest)).pixels for highest in (65535, 4095))
    assert np.asarray(in_channels(bright, channels)).max() >= 254
    with pytest.raises(Skipped, match="16-bit colours .* --value-range 0 65535"):
        in_channels(dark, channels)
    assert np.asarray(in_channels(dark, channels, (0, 65535))).max() == 15
    with pytest.raises(Skipped, match="can't be 0 to 4095"):
        in_channels(dark, channels, (0, 4095))


def tagged(values: np.ndarray, photometric: int) -> bytes:
    """A TIFF written by hand, whose photometric interpretation says which values are white."""
    data, (height, width) = values.tobytes(), values.shape
    tags = {256: width, 257: height, 258: values.itemsize * 8, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data),
            339: 3 if values.dtype.kind == "f" else 1}  # fmt: skip
    rows = b"".join(struct.pack("<HHII", number, 4, 1, value) for number, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + rows + bytes(4)


def test_where_white_is_zero_the_picture_is_no_negative() -> None:
    values = ramp(65535).astype("<u2")
    twin = grey(tagged((values >> 8).astype(np.uint8), 0))
    assert np.abs(grey(tagged(values, 0)) - twin).max() <= 1
    assert np.abs(grey(tagged(values.astype("<f4"), 0), (0, 65535)) - twin).max() <= 1
    assert_ramp(grey(tagged(values, 1)))
    with pytest.raises(Skipped, match="their range isn't known"):
        grey(tagged(ramp(4095).astype("<u2"), 0))


def fits(values: np.ndarray) -> bytes:
    height, width = values.shape
    cards = ["SIMPLE  =                    T", "BITPIX  =                   16", "NAXIS   =                    2",
             f"NAXIS1  = {width:20d}", f"NAXIS2  = {height:20d}", "END"]  # fmt: skip
    data = values[::-1].astype(">i2").tobytes()
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + data + bytes(-len(data) % 2880)


def test_integers_of_16_bits_with_a_sign_are_refused_until_the_range_is_said() -> None:
    values = ramp(65535).astype(np.int64) - 32768
    with pytest.raises(Skipped, match="16-bit signed integers from -32768 to 32767, whose range isn't known; say it with"):
        grey(fits(values))
    assert_ramp(grey(fits(values), (-32768, 32767)))


def test_sgi_files_of_16_bits_that_may_be_of_12_are_refused() -> None:
    def sgi(values: np.ndarray) -> bytes:
        head = struct.pack(">hBBHHHHii", 474, 0, 2, 2, SIZE[1], SIZE[0], 1, 0, 65535)
        return head.ljust(512, b"\0") + values[::-1].astype(">u2").tobytes()

    assert np.abs(grey(sgi(ramp(65535))) - (ramp(65535) >> 8)).max() <= 1
    with pytest.raises(Skipped, match="16-bit colours .* --value-range 0 65535"):
        grey(sgi(ramp(4095)))
    assert grey(sgi(ramp(4095)), (0, 65535)).max() == 15


def test_pictures_of_a_data_set_are_asked_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(ramp(4095), 12))
    opened = Image.open(tmp_path / "a.png")
    picture = DatasetSource([opened]).read(0).pixels
    assert isinstance(picture, Image.Image)
    assert_ramp(np.asarray(in_channels(picture, 1)).astype(int))


def test_the_range_belongs_to_the_preprocessing_and_goes_into_the_atlas(tmp_path: Path) -> None:
    from networks import see_through

    (tmp_path / "images").mkdir()
    for number in range(4):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(np.minimum(ramp(4095) + number, 4095)))
    how = unitscope.Preprocessing(None, SIZE, (0.0,), (1.0,), 1, value_range=(0, 4095))
    atlas = unitscope.scan(see_through(1), tmp_path / "images", tmp_path / "atlas", preprocess=how)
    assert atlas.peaks("0", 0)["value"].to_pylist() == [1.0] * 4
    opened = unitscope.Atlas(tmp_path / "atlas")
    assert opened.preprocessing == how
    assert_ramp(np.asarray(opened.picture(0).convert("L")).astype(int))
    assert unitscope.check(opened, see_through(1)).differences == []
    assert_ramp(prepare(decode_image(tmp_path / "images" / "0.png"), how)[..., 0])
    with pytest.raises(unitscope.UnitscopeError, match="none of 4 files .* --value-range"):
        unitscope.scan(
            see_through(1),
            tmp_path / "images",
            tmp_path / "other",
            preprocess=unitscope.Preprocessing(None, SIZE, (0.0,), (1.0,), 1),
        )


@pytest.mark.parametrize("value_range", [(1, 1), (2, 1), (0, float("nan")), (0, float("inf"))])
def test_a_range_is_a_lower_and_a_higher_number(value_range: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="lower and a higher"):
        unitscope.Preprocessing(None, (4, 4), (0.5,), (0.5,), 1, value_range=value_range)
