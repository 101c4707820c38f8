"""Real Rice-compressed raws, of five cameras and three programs that compressed them: the bits that astropy reads."""

import numpy as np
import pytest
from realdata import real_data

from nightstream.io.fits_file import open_fits
from nightstream.io.tile_compression import decode_stack, rice_image

pytestmark = pytest.mark.real


@pytest.mark.parametrize("dataset", ["lsst_raw_format", "efosc2_raw", "lco_sinistro_raw", "decam_legacypipe_multiepoch"])
def test_every_rice_image_has_the_bits_that_astropy_reads(dataset):
    """uint16, int16 and int32; at most 40 images of a file."""
    n_images = 0
    for path in sorted(real_data(dataset).rglob("*.fits*z")):
        with open_fits(path) as file:
            for index in [i for i, hdu in enumerate(file.hdus) if type(hdu).__name__ == "CompImageHDU"][:40]:
                image = rice_image(file, index)
                if image is not None:
                    pixels, whole = decode_stack([image])
                    assert whole.all()
                    np.testing.assert_array_equal(pixels[0], file.hdus[index].data, err_msg=f"{path.name}[{index}]")
                    n_images += 1
    assert n_images
