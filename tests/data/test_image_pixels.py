import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vae_jax.data import image_pixels


def encoded(image, form="PNG", **how):
    stream = io.BytesIO()
    image.save(stream, form, **how)
    return stream.getvalue()


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def decode(content, *, image_size=None, color=False):
    return image_pixels.decode(content, image_size=image_size, color=color)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP", "PPM"])
def test_lossless_color_reads_back_whatever_the_format(form):
    pixels = noise(5, 7, 3)
    how = {"lossless": True} if form == "WEBP" else {}
    content = encoded(Image.fromarray(pixels), form, **how)
    np.testing.assert_array_equal(decode(content, color=True), pixels)
    assert image_pixels.header(content) == (True, 5, 7)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF", "PPM"])
def test_lossless_gray_reads_back_and_is_the_same_in_color(form):
    pixels = noise(5, 7)
    content = encoded(Image.fromarray(pixels), form)
    np.testing.assert_array_equal(decode(content), pixels)
    colored = np.repeat(pixels[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode(content, color=True), colored)
    assert image_pixels.header(content) == (False, 5, 7)


def test_jpeg_is_read_to_its_losses_in_gray_color_and_cmyk():
    ramp = np.linspace(20, 230, 64, dtype=np.uint8).reshape(8, 8)
    for mode in ("L", "RGB", "CMYK"):
        image = Image.fromarray(ramp).convert("RGB").convert(mode)
        content = encoded(image, "JPEG", quality=100)
        results = decode(content).astype(int)
        assert abs(results - ramp).max() <= 4
        assert image_pixels.header(content).is_color == (mode != "L")


def test_one_bit_an_entry_is_black_and_white():
    bits = noise(6, 6) > 127
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(bits))), 255 * bits)


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP"])
def test_a_palette_is_looked_up_and_its_colors_say_whether_it_is_color(form):
    index = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for is_color in (False, True):
        palette = noise(12, 3) if is_color else np.repeat(noise(12, 1), 3, axis=1)
        image = Image.fromarray(index, "P")
        image.putpalette(palette.tobytes())
        content = (
            encoded(image, form, optimize=False)
            if form == "GIF"
            else (encoded(image, form))
        )
        np.testing.assert_array_equal(decode(content, color=True), palette[index])
        assert image_pixels.header(content).is_color == is_color


def test_transparent_pixels_lie_on_white():
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 0], pixels[0, :, 3] = 200, (0, 255, 51)
    results = decode(encoded(Image.fromarray(pixels)), color=True)
    expected = [[255, 255, 255], [200, 0, 0], [244, 204, 204]]
    np.testing.assert_array_equal(results[0], expected)


def test_a_gray_with_alpha_and_a_transparent_color_of_a_palette_lie_on_white():
    pair = np.array([[[10, 0], [10, 255]]], np.uint8)
    content = encoded(Image.fromarray(pair, "LA"))
    np.testing.assert_array_equal(decode(content), [[255, 10]])
    assert not image_pixels.header(content).is_color
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([0, 0, 0, 9, 9, 9])
    content = encoded(image, "PNG", transparency=0)
    np.testing.assert_array_equal(decode(content), [[255, 9]])


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_of_sixteen_bits_the_upper_eight_are_kept(form):
    values = np.array([[0, 255, 256, 257 * 9, 65535]], np.uint16)
    content = encoded(Image.fromarray(values), form)
    np.testing.assert_array_equal(decode(content), [[0, 0, 1, 9, 255]])
    assert not image_pixels.header(content).is_color


def test_a_transparent_gray_of_sixteen_bits_lies_on_white():
    values = np.array([[30_000, 30_001, 0]], np.uint16)
    content = encoded(Image.fromarray(values), "PNG", transparency=30_000)
    np.testing.assert_array_equal(decode(content), [[255, 117, 0]])


def test_color_of_sixteen_bits_keeps_the_upper_eight_too():
    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixels = b"\0" + struct.pack(">3H", 255, 257 * 9, 65535)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels))
    content = b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode(content, color=True), [[[0, 9, 255]]])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_camera_was_held(orientation, form):
    upright = noise(4, 6)
    stored = {  # what a viewer turns back, by the EXIF standard
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"lossless": True} if form == "WEBP" else {}
    image = Image.fromarray(np.ascontiguousarray(stored))
    content = encoded(image, form, exif=exif, **how)
    decoded = decode(content)
    assert decoded.shape == (4, 6)
    if form in ("PNG", "TIFF"):  # the others keep no gray exactly
        np.testing.assert_array_equal(decoded, upright)
    assert image_pixels.header(content)[1:] == (4, 6)


def test_a_png_that_says_so_after_its_pixels_is_turned_too():
    exif, pixels = Image.Exif(), noise(4, 6)
    exif[0x0112] = 6
    content = encoded(Image.fromarray(np.rot90(pixels).copy()), "PNG", exif=exif)
    at, to, end = content.index(b"eXIf") - 4, content.index(b"IDAT") - 4, -12
    late = content[:at] + content[to:end] + content[at:to] + content[end:]
    np.testing.assert_array_equal(decode(late), pixels)
    assert image_pixels.header(late)[1:] == (4, 6)


def test_of_several_images_the_first_is_read():
    first, second = Image.fromarray(noise(4, 4)), Image.new("L", (4, 4))
    for form in ("GIF", "TIFF"):
        content = encoded(first, form, save_all=True, append_images=[second])
        np.testing.assert_array_equal(decode(content), np.asarray(first))


def test_the_square_in_the_middle_is_scaled():
    tall = np.zeros((9, 4), np.uint8)
    tall[2:6] = 255
    np.testing.assert_array_equal(
        decode(encoded(Image.fromarray(tall)), image_size=4), np.full((4, 4), 255)
    )
    wide = np.full((8, 12, 3), 90, np.uint8)
    wide[:, :2] = wide[:, 10:] = 0
    results = decode(encoded(Image.fromarray(wide)), image_size=4, color=True)
    np.testing.assert_array_equal(results, np.full((4, 4, 3), 90))
    pixels = noise(16, 16)
    scaled = Image.fromarray(pixels).resize((5, 5), Image.Resampling.LANCZOS)
    results = decode(encoded(Image.fromarray(pixels)), image_size=5)
    np.testing.assert_array_equal(results, np.asarray(scaled))
    assert decode(encoded(Image.fromarray(pixels)), image_size=40).shape == (40, 40)


def bomb(side):
    content = bytearray(encoded(Image.fromarray(noise(4, 4)), "BMP"))
    content[18:26] = struct.pack("<2i", side, side)
    return bytes(content)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"no image", "its content is none of PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM"),
        (encoded(Image.fromarray(noise(40, 40)))[:-400], "truncated"),
        (encoded(Image.fromarray(noise(40, 40)), "JPEG")[:-400], "truncated"),
        (bomb(8193), "its 8193 x 8193 pixels are more than the 67108864"),
        (bomb(50_000), "exceeds limit"),
        (encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), "floats"),
        (
            encoded(Image.fromarray(np.full((2, 2), -3, np.int32)), "TIFF"),
            "from -3 to -3, and",
        ),
    ],
)
def test_what_is_no_image_to_be_read_is_refused_in_one_line(content, said):
    with pytest.raises(ValueError, match=said) as error:
        decode(content)
    assert "\n" not in str(error.value)
    assert "0x" not in str(error.value)


def test_other_formats_that_pillow_knows_are_not_tried():
    with pytest.raises(ValueError, match="none of PNG"):
        decode(encoded(Image.fromarray(noise(4, 4)), "PCX"))
