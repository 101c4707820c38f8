"""``nightstream subtract``: two FITS files in; a difference, its picture and its numbers out, or one clear error."""

import numpy as np
import pytest
from astropy.io import fits
from reduced_pair import Stars, expose, field
from typer.testing import CliRunner

from nightstream.cli import app
from nightstream.io.wcs_cards import wcs_to_cards
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.wcs import Wcs

SHAPE = (256, 256)
STARS = field(40, shape=SHAPE)
CHANGE = Stars(np.array([130.3]), np.array([101.6]), np.array([5e3]))
SKY = Wcs.tan(150.0, 2.0, 127.5, 127.5, 0.2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Paths of a science image with one change and of a template; nobody writes to them."""
    folder = tmp_path_factory.mktemp("pair")
    science, template = expose(STARS, shape=SHAPE, extra=CHANGE), expose(STARS, shape=SHAPE, fwhm=3.2, depth=4, seed=3)
    for name, image in (("science", science), ("template", template)):
        header = fits.Header([("GAIN", image.gain), ("SATURATE", 1e6), *wcs_to_cards(SKY)])
        fits.writeto(folder / f"{name}.fits", image.image, header)
    return [folder / "science.fits", folder / "template.fits"]


def invoke(*arguments):
    return CliRunner().invoke(app, ["subtract", *(str(argument) for argument in arguments)])


def subtract(pair, folder, *options):
    """Run the command, which must succeed; return the HDUs of the difference and what was printed."""
    result = invoke(*pair, "--out", folder / "difference.fits", "--device", "cpu", *options)
    assert result.exit_code == 0, result.output
    with fits.open(folder / "difference.fits") as hdus:
        return {hdu.name: hdu.copy() for hdu in hdus}, result.output


def significance(hdus):
    """The change's pixel over its sigma; the scatter of all others' pulls."""
    pull = hdus["PRIMARY"].data / np.sqrt(hdus["VARIANCE"].data)
    usable = hdus["MASK"].data & int(MaskPlane.unusable()) == 0
    return pull[102, 130], 1.4826 * np.median(np.abs(pull[usable]))


def test_two_files_in_one_out_with_a_picture(pair, tmp_path):
    """The change stands out of white sky, the picture lies beside the file, and the table says how good it is."""
    hdus, printed = subtract(pair, tmp_path)
    peak, scatter = significance(hdus)
    assert peak > 5 and scatter == pytest.approx(1, abs=0.03)
    assert (tmp_path / "difference.png").read_bytes().startswith(b"\x89PNG")
    assert "science.fits - template.fits" in printed and "science flux over template flux" in printed and "wrote" in printed
    assert hdus["PRIMARY"].header["CTYPE1"] == "RA---TAN" and "SCORE" not in hdus


def test_a_score_image_is_written_when_asked_for(pair, tmp_path):
    """The change is the most significant point of it, its flux right within 4 sigma."""
    hdus, _ = subtract(pair, tmp_path, "--score", "--picture", tmp_path / "look.png")
    score = hdus["SCORE"].data
    assert np.unravel_index(np.argmax(score), score.shape) == (102, 130) and score.max() > 15
    # its place is half a pixel from the pixel's centre: exp(-0.5^2 / 4 / 1.7^2) = 0.98 of the flux
    assert hdus["FLUX"].data[102, 130] == pytest.approx(0.98 * 5e3, abs=4 * float(hdus["FLUX_ERR"].data[102, 130]))
    assert (tmp_path / "look.png").exists() and not (tmp_path / "difference.png").exists()


@pytest.mark.parametrize(
    "options", [("--method", "zogy"), ("--basis", "delta"), ("--decorrelate",), ("--convolve", "science"), ("--align", "stars")]
)
def test_every_way_finds_the_change(options, pair, tmp_path):
    """Proper subtraction, a kernel of pixels, white noise, the other image convolved, aligned by stars."""
    config = tmp_path / "config.yaml"
    config.write_text("difference: {kernel_size_pix: 11, spatial_order: 0}\n" if "delta" in options else "{}")
    hdus, _ = subtract(pair, tmp_path, *options, "--config", config)
    peak, scatter = significance(hdus)
    assert peak > 5 and scatter == pytest.approx(1, abs=0.05)
    assert ("KERNEL" in hdus) == (options[-1] != "zogy")
    if options == ("--decorrelate",):
        assert abs(hdus["PRIMARY"].header["NS NOISE_CORRELATION_X"]) < 5 / 200  # 200^2 pixels of sky
    if options == ("--convolve", "science"):
        assert hdus["PRIMARY"].header["NS CONVOLVED_SCIENCE"] == 1


def test_a_file_configures_and_options_win(pair, tmp_path):
    """YAML sections prepare, align, difference, and score; what is said on the command line counts more."""
    config = tmp_path / "config.yaml"
    config.write_text("score: true\nprepare: {psf_order: 0}\ndifference: {method: zogy, spatial_order: 0}\n")
    hdus, _ = subtract(pair, tmp_path, "--config", config, "--method", "alard_lupton")
    assert "KERNEL" in hdus and "SCORE" in hdus
    assert hdus["PRIMARY"].header["NS SPATIAL_ORDER"] == 0 and hdus["PSF_MODEL"].data.shape[0] >= 1
    assert hdus["PSF_MODEL"].header["ORDER"] == 0


def test_planes_and_numbers_of_the_images_are_used(pair, tmp_path):
    """A mask makes BAD pixels, saturation SAT and SAT_TEMPLATE ones, a gain of 4 a variance that is scaled back."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[20:24, 30:34] = 1
    fits.writeto(tmp_path / "mask.fits", mask)
    hdus, _ = subtract(
        pair, tmp_path, "--science-mask", tmp_path / "mask.fits", "--gain", 4, 4, "--saturation", 5e3, 6e3, "--read-noise", 0, 0,
    )  # fmt: skip
    planes, head = hdus["MASK"].data, hdus["PRIMARY"].header
    assert (planes[20:24, 30:34] & MaskPlane.BAD).all()
    assert (planes & MaskPlane.SAT).any() and (planes & MaskPlane.SAT_TEMPLATE).any()
    assert head["NS SCIENCE_VARIANCE_SCALE"] == pytest.approx(4, rel=0.05)
    assert head["NS TEMPLATE_VARIANCE_SCALE"] == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "hotpants"), r"difference.method: Input should be 'alard_lupton' or 'zogy', got 'hotpants'"),
        (("--basis", "fourier"), r"difference.kernel_basis: Input should be 'gaussian' or 'delta', got 'fourier'"),
        (("--align", "manual"), r"align.mode: Input should be 'auto', 'none', 'wcs' or 'stars', got 'manual'"),
        (("--convolve", "both"), r"difference.convolve: Input should be"),
        (("--gain", "1"), "gain"),
        (("--frobnicate",), "No such option"),
    ],
)
def test_a_wrong_option_is_a_usage_error(options, message, pair, tmp_path):
    """Status 2, one message that names it and what there is, nothing written."""
    result = invoke(*pair, "--out", tmp_path / "difference.fits", *options)
    assert result.exit_code == 2 and message in result.output and "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("difference: {kernel_sise_pix: 21}", "difference.kernel_sise_pix: Extra inputs are not permitted, got 21"),
        ("subtract: {}", "subtract: Extra inputs are not permitted"),
        ("difference: 3", "difference must hold settings, got 3"),
        ("- a list", "config.yaml"),
        ("difference: {", "config.yaml"),
    ],
)
def test_a_wrong_configuration_is_a_usage_error(text, message, pair, tmp_path):
    """Status 2, one line with the key and the file."""
    config = tmp_path / "config.yaml"
    config.write_text(text)
    result = invoke(*pair, "--out", tmp_path / "difference.fits", "--config", config)
    assert result.exit_code == 2, result.output
    assert message in result.output and "config.yaml" in result.output and "Traceback" not in result.output


def test_a_missing_file_is_a_usage_error(pair, tmp_path):
    """Said before anything is read."""
    result = invoke(pair[0], tmp_path / "nothing.fits", "--out", tmp_path / "difference.fits")
    assert result.exit_code == 2 and "nothing.fits" in result.output.replace("\n", "")
    result = invoke(*pair, "--science-mask", tmp_path / "no_mask.fits")
    assert result.exit_code == 2


def test_an_unreadable_file_is_a_failure(pair, tmp_path):
    """Status 1, one line that names the file, no output."""
    (tmp_path / "broken.fits").write_text("not FITS at all\n" * 500)
    result = invoke(pair[0], tmp_path / "broken.fits", "--out", tmp_path / "difference.fits")
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert result.output.count("error:") == 1 and "not a readable FITS file" in result.output and "broken.fits]" in result.output
    assert not (tmp_path / "difference.fits").exists()


def test_images_that_cannot_be_subtracted_are_a_failure(pair, tmp_path):
    """An image without a star: status 1, and which of the two it was."""
    empty = tmp_path / "empty.fits"
    fits.writeto(empty, expose(field(0), shape=SHAPE).image)
    result = invoke(pair[0], empty, "--out", tmp_path / "difference.fits", "--align", "none")
    assert result.exit_code == 1 and "no source of S/N 20" in result.output and "empty.fits]" in result.output
    assert not (tmp_path / "difference.fits").exists()


def test_an_output_that_cannot_be_written_is_a_failure(pair, tmp_path):
    """A file where the folder should be: status 1, naming it."""
    (tmp_path / "taken").write_text("in the way")
    result = invoke(*pair, "--out", tmp_path / "taken" / "difference.fits")
    assert result.exit_code == 1 and "could not write the file" in result.output and "Traceback" not in result.output
