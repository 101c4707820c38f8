"""A `Wcs` from FITS cards and back: the only place where FITS' 1-based pixels meet our 0-based ones."""

from __future__ import annotations

import math
import re
from decimal import Decimal, InvalidOperation
from typing import Any

from nightstream.errors import InputError
from nightstream.kernels.polynomial import Term
from nightstream.kernels.wcs import Wcs

Card = tuple[str, str | int | float, str]

WCS_KEYWORD = re.compile(
    r"(WCSAXES|WCSDIM|CTYPE\d|CUNIT\d|CRVAL\d|CRPIX\d|CD\d_\d|PC\d+_\d+|CDELT\d|CROTA\d|LONPOLE|LATPOLE"
    r"|WCSNAME|PV\d_\d+|[AB]P?_ORDER|[AB]P?_\d_\d|[AB]_DMAX|RADESYS|RADECSYS|EQUINOX|EPOCH|WAT\d_\d+)[A-Z]?$"
)

# TPV index m -> powers of (x, y, r) on axis 1; on axis 2 the powers of x and y change places.
TPV_POWERS = {0: (0, 0, 0), 1: (1, 0, 0), 2: (0, 1, 0), 3: (0, 0, 1)}
for _order, _first in ((2, 4), (3, 7), (4, 12), (5, 17), (6, 24), (7, 31)):
    TPV_POWERS.update({_first + j: (_order - j, j, 0) for j in range(_order + 1)})
TPV_POWERS.update({11: (0, 0, 3), 23: (0, 0, 5), 39: (0, 0, 7)})
TPV_INDEX = {powers: index for index, powers in TPV_POWERS.items()}


def wcs_from_header(header: Any) -> Wcs | None:
    """Return the celestial WCS of ``header``: an `astropy.io.fits.Header`, or card text, newlines or not.

    Understood are TAN, TAN-SIP and TPV (also spelled TAN with PV terms, as SCAMP does), with a CD matrix, PC
    and CDELT, or CDELT and CROTA2. None when there is no celestial WCS: no CTYPE, linear axes, or no matrix
    but zeros. FK5 (2000) positions are taken as ICRS, from which they differ by some 0.02 arcsec.

    Raises `InputError`, naming it, for another projection, coordinate system or unit.
    """
    header = parse_cards(header)
    axes = _celestial_axes(header)
    if axes is None:
        return None
    matrix = _matrix(header, axes)
    crval = tuple(_number(header, f"CRVAL{axis}", math.nan) for axis in axes)
    if matrix is None or any(map(math.isnan, crval)):
        return None
    kind, distortion = _distortion(header, axes)
    crpix = tuple(_zero_based(header, f"CRPIX{pixel_axis}") for pixel_axis in (1, 2))
    lonpole = _number(header, "LONPOLE", 0.0 if crval[1] >= 90.0 else 180.0)
    return Wcs(crval, crpix, matrix, kind, distortion, lonpole)


def wcs_to_cards(wcs: Wcs) -> list[Card]:
    """Return (keyword, value, comment) for ``wcs``, with CRPIX counted from 1.

    Adding 1 rounds small CRPIX in the last bit; `wcs_to_text` does not.
    """
    code = {"TAN": "TAN", "SIP": "TAN-SIP", "TPV": "TPV"}[wcs.kind]
    cards: list[Card] = [("WCSAXES", 2, "number of coordinate axes")]
    for axis, name in ((1, "RA---"), (2, "DEC--")):
        cards += [
            (f"CTYPE{axis}", name + code, "axis and projection"),
            (f"CUNIT{axis}", "deg", "unit of CRVAL and CD"),
            (f"CRVAL{axis}", wcs.crval[axis - 1], "[deg] reference point"),
            (f"CRPIX{axis}", float(_one_based(wcs.crpix[axis - 1])), "[pixel] reference point, from 1"),
            (f"CD{axis}_1", wcs.cd[axis - 1][0], "[deg/pixel]"),
            (f"CD{axis}_2", wcs.cd[axis - 1][1], "[deg/pixel]"),
        ]
    cards += [
        ("LONPOLE", wcs.lonpole, "[deg] native longitude of the pole"),
        ("RADESYS", "ICRS", "celestial frame"),
    ]
    return cards + {"TAN": lambda _: [], "SIP": _sip_cards, "TPV": _tpv_cards}[wcs.kind](wcs)


def wcs_to_text(wcs: Wcs) -> str:
    """Return ``wcs`` as 80-column FITS cards, one a line, which `wcs_from_header` reads back exactly."""
    exact = {f"CRPIX{axis}": _one_based(wcs.crpix[axis - 1]) for axis in (1, 2)}
    return "\n".join(card_text(key, exact.get(key, value), comment) for key, value, comment in wcs_to_cards(wcs))


def card_text(keyword: str, value: Any, comment: str) -> str:
    """Return one FITS card of 80 characters, floats with all digits (astropy's writer cuts at 20 columns)."""
    if isinstance(value, str):
        text = f"{_quoted(value):<20}"
    else:
        text = f"{_fits_number(value):>20}"
    return f"{keyword:<8}= {text} / {comment}"[:80].ljust(80)


def parse_cards(header: Any) -> Any:
    """Return ``header`` as an `astropy.io.fits.Header`; text may be newline separated or 80-column cards."""
    if not isinstance(header, str):
        return header
    from astropy.io import fits

    return fits.Header.fromstring(header, sep="\n" if "\n" in header else "")


def _quoted(value: str) -> str:
    return "'" + f"{value:<8}".replace("'", "''") + "'"


def _fits_number(value: Any) -> str:
    if isinstance(value, bool):
        return "T" if value else "F"
    return str(value).upper() if isinstance(value, (int, Decimal)) else repr(float(value)).upper()


def _one_based(value: float) -> Decimal:
    return Decimal(repr(float(value))) + 1


def _zero_based(header: Any, key: str) -> float:
    """Subtract 1 in decimal, from the card's own digits: binary floats would lose the last bits."""
    if key not in header:
        return -1.0
    digits = header.cards[key].image.partition("=")[2].partition("/")[0].strip().upper().replace("D", "E")
    try:
        return float(Decimal(digits) - 1)
    except InvalidOperation:
        raise InputError(f"{key} must be a number, got {digits!r}") from None


def _number(header: Any, key: str, default: float) -> float:
    value = header.get(key)
    if value is None or type(value).__name__ == "Undefined":
        return default
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{key} must be a number, got {value!r}") from None


def _celestial_axes(header: Any) -> tuple[int, int] | None:
    """Return the FITS axis numbers of (ra, dec); None for linear axes; refuse other celestial ones."""
    types = [str(header.get(f"CTYPE{axis}", "") or "").strip().upper() for axis in (1, 2)]
    if not any("-" in text for text in types):
        return None
    names, codes = zip(*((text[:4].rstrip("-"), text[5:].strip("-")) for text in types), strict=True)
    if set(names) != {"RA", "DEC"} or codes[0] != codes[1] or codes[0] not in ("TAN", "TAN-SIP", "TPV"):
        raise InputError(f"WCS projection must be RA/DEC in TAN, TAN-SIP or TPV, got {types[0]!r}, {types[1]!r}")
    units = {str(header.get(f"CUNIT{axis}", "deg")).strip().lower() for axis in (1, 2)}
    if not units <= {"deg", "degree", "degrees", ""}:
        raise InputError(f"WCS unit must be deg, got {', '.join(sorted(units))}")
    frame = str(header.get("RADESYS", header.get("RADECSYS", "ICRS"))).strip().upper()
    if frame.startswith("FK4") or frame == "GAPPT":
        raise InputError(f"WCS frame must be ICRS or FK5, got {frame}")
    return (1, 2) if names[0] == "RA" else (2, 1)


def _matrix(header: Any, axes: tuple[int, int]):
    """Return the 2 x 2 matrix in deg / pixel with rows (ra, dec); None if it is absent or zero."""
    if any(f"CD{i}_{j}" in header for i in (1, 2) for j in (1, 2)):
        rows = {i: [_number(header, f"CD{i}_{j}", 0.0) for j in (1, 2)] for i in (1, 2)}
    elif "CDELT1" in header or "CDELT2" in header:
        rows = _matrix_from_steps(header)
    else:
        return None
    matrix = tuple(tuple(rows[axis]) for axis in axes)
    return None if not any(map(any, matrix)) else matrix


def _matrix_from_steps(header: Any) -> dict[int, list[float]]:
    step = {i: _number(header, f"CDELT{i}", 1.0) for i in (1, 2)}
    if any(f"PC{i}_{j}" in header for i in (1, 2) for j in (1, 2)):
        turn = {i: [_number(header, f"PC{i}_{j}", float(i == j)) for j in (1, 2)] for i in (1, 2)}
        return {i: [step[i] * value for value in turn[i]] for i in (1, 2)}
    angle = math.radians(_number(header, "CROTA2", 0.0))
    sine, cosine = math.sin(angle), math.cos(angle)
    return {1: [step[1] * cosine, -step[2] * sine], 2: [step[1] * sine, step[2] * cosine]}


def _distortion(header: Any, axes: tuple[int, int]) -> tuple[str, tuple]:
    is_tpv = "TPV" in str(header["CTYPE1"]).upper()
    if not is_tpv and ("A_ORDER" in header or "B_ORDER" in header):
        return "SIP", (_sip_terms(header, "A"), _sip_terms(header, "B"))
    if is_tpv or ("SIP" not in str(header["CTYPE1"]).upper() and _is_scamp(header, axes)):
        return "TPV", (_tpv_terms(header, axes[0], False), _tpv_terms(header, axes[1], True))
    return "TAN", ()


def _sip_terms(header: Any, letter: str) -> tuple[Term, ...]:
    order = int(_number(header, f"{letter}_ORDER", 0.0))
    powers = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]
    found = ((i, j, 0, _number(header, f"{letter}_{i}_{j}", 0.0)) for i, j in powers)
    return tuple(term for term in found if term[3] != 0.0)


def _is_scamp(header: Any, axes: tuple[int, int]) -> bool:
    """Tell whether a TAN has distortion in PV: on the latitude axis, or beyond the standard's PV1_0 to _4."""
    return any(f"PV{axes[1]}_{m}" in header for m in TPV_POWERS) or any(f"PV{axes[0]}_{m}" in header for m in TPV_POWERS if m > 4)


def _tpv_terms(header: Any, axis: int, swap: bool) -> tuple[Term, ...]:
    """Return the terms of one axis; a missing linear coefficient is 1, any other is 0."""
    terms = []
    for m, (i, j, k) in TPV_POWERS.items():
        c = _number(header, f"PV{axis}_{m}", 1.0 if m == 1 else 0.0)
        if c != 0.0:
            terms.append((j, i, k, c) if swap else (i, j, k, c))
    return tuple(terms)


def _sip_cards(wcs: Wcs) -> list[Card]:
    cards: list[Card] = []
    for letter, terms in zip("AB", wcs.distortion, strict=True):
        cards.append((f"{letter}_ORDER", max((i + j for i, j, _, _ in terms), default=0), "SIP order"))
        cards += [(f"{letter}_{i}_{j}", c, "SIP coefficient") for i, j, _, c in terms]
    return cards


def _tpv_cards(wcs: Wcs) -> list[Card]:
    """Return PV cards. The linear one is always written, because its default is 1."""
    cards: list[Card] = []
    for axis, terms in enumerate(wcs.distortion, start=1):
        values = {TPV_INDEX[(i, j, k) if axis == 1 else (j, i, k)]: c for i, j, k, c in terms}
        values.setdefault(1, 0.0)
        cards += [(f"PV{axis}_{m}", values[m], "TPV coefficient") for m in sorted(values)]
    return cards
