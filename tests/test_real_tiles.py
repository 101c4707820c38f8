"""Real tile-compressed raws, of five cameras and three programs that compressed them: the bits that astropy reads.

All of them are compressed by Rice; their pixels are packed anew by gzip.
"""

import numpy as np
import pytest
from astropy.io import fits
from realdata import real_data

from nightstream.io.fits_file import open_fits
from nightstream.io.tile_compression import compressed_image, decode_stack

pytestmark = pytest.mark.real


def images_in(path):
    """What is decoded here of a file, 40 images at most: index, image, pixels as astropy reads them."""
    with open_fits(path) as file:
        for index in [i for i, hdu in enumerate(file.hdus) if type(hdu).__name__ == "CompImageHDU"][:40]:
            image = compressed_image(file, index)
            if image is not None:
                yield index, image, file.hdus[index].data


@pytest.mark.parametrize("dataset", ["lsst_raw_format", "efosc2_raw", "lco_sinistro_raw", "decam_legacypipe_multiepoch"])
def test_every_image_has_the_bits_that_astropy_reads(dataset):
    """uint16, int16 and int32; at most 40 images of a file."""
    n_images = 0
    for path in sorted(real_data(dataset).rglob("*.fits*z")):
        for index, image, expected in images_in(path):
            pixels, whole = decode_stack([image])
            assert whole.all()
            np.testing.assert_array_equal(pixels[0], expected, err_msg=f"{path.name}[{index}]")
            n_images += 1
    assert n_images


@pytest.mark.parametrize("compression", ["GZIP_1", "GZIP_2"])
@pytest.mark.parametrize("dataset", ["lsst_raw_format", "efosc2_raw", "lco_sinistro_raw"])
def test_pixels_packed_by_gzip_come_back(tmp_path, dataset, compression):
    """The first 200 rows of the first image of each file, in tiles of a row."""
    firsts = [next(images_in(path), None) for path in sorted(real_data(dataset).rglob("*.fits*z"))]
    expected = [pixels[:200] for _, _, pixels in filter(None, firsts)]
    hdus = [fits.CompImageHDU(pixels, compression_type=compression) for pixels in expected]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "anew.fits")
    packed = list(images_in(tmp_path / "anew.fits"))
    assert len(packed) == len(expected) > 0
    for pixels, (_, image, _) in zip(expected, packed, strict=True):
        np.testing.assert_array_equal(decode_stack([image])[0][0], pixels)
