"""Which fonts the pictures use. Knows Debian's font folders; the held-out list never meets a training picture."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

ROOT = Path("/usr/share")

TRAINING = [
    "LiberationSans-Regular.ttf",
    "LiberationSans-Bold.ttf",
    "LiberationSerif-Regular.ttf",
    "LiberationSerif-Bold.ttf",
    "LiberationMono-Regular.ttf",
    "LiberationMono-Bold.ttf",
    "LiberationSansNarrow-Bold.ttf",
    "FreeSans.ttf",
    "FreeSansBold.ttf",
    "FreeSerif.ttf",
    "FreeSerifBold.ttf",
    "FreeMonoBold.ttf",
    "Roboto-Regular.ttf",
    "Roboto-Bold.ttf",
    "Roboto-Medium.ttf",
    "RobotoCondensed-Regular.ttf",
    "RobotoCondensed-Bold.ttf",
    "Lato-Regular.ttf",
    "Lato-Bold.ttf",
    "Lato-Black.ttf",
    "Carlito-Regular.ttf",
    "Carlito-Bold.ttf",
    "Caladea-Regular.ttf",
    "Caladea-Bold.ttf",
    "Comfortaa-Regular.ttf",
    "Comfortaa-Bold.ttf",
    "Quicksand-Medium.ttf",
    "Quicksand-Bold.ttf",
    "NotoSans-Regular.ttf",
    "NotoSans-Bold.ttf",
    "NotoSerif-Regular.ttf",
    "NotoSerif-Bold.ttf",
    "NotoSansMono-Regular.ttf",
    "NotoSansMono-Bold.ttf",
    "NotoSansDisplay-Regular.ttf",
    "NotoSerifDisplay-Bold.ttf",
    "FiraCode-Regular.ttf",
    "FiraCode-Bold.ttf",
    "Hack-Regular.ttf",
    "Hack-Bold.ttf",
    "C059-Roman.otf",
    "C059-Bold.otf",
    "P052-Roman.otf",
    "P052-Bold.otf",
    "NimbusSans-Regular.otf",
    "NimbusSans-Bold.otf",
    "NimbusRoman-Regular.otf",
    "NimbusRoman-Bold.otf",
    "NimbusMonoPS-Bold.otf",
    "URWGothic-Book.otf",
    "URWGothic-Demi.otf",
    "URWBookman-Light.otf",
    "URWBookman-Demi.otf",
    "Vollkorn-Regular.ttf",
    "Vollkorn-Bold.ttf",
    "GenBasR.ttf",
    "GenBasB.ttf",
    "JetBrainsMono-Regular.ttf",
    "JetBrainsMono-Bold.ttf",
    "Inter-Regular.otf",
    "Inter-Bold.otf",
    "Inter-Medium.otf",
    "Karla-Regular.otf",
    "Karla-Bold.otf",
    "Dosis-Medium.otf",
    "Dosis-Bold.otf",
    "B612-Regular.otf",
    "B612-Bold.otf",
    "Go-Regular.ttf",
    "Go-Bold.ttf",
    "Go-Mono-Bold.ttf",
    "GilliusADF-Regular.otf",
    "GilliusADF-Bold.otf",
    "UniversalisADFStd-Regular.otf",
    "UniversalisADFStd-Bold.otf",
    "Tuffy.ttf",
    "Tuffy_Bold.ttf",
    "Sora-Regular.otf",
    "Sora-Bold.otf",
    "LinLibertine_R.otf",
    "LinLibertine_RB.otf",
    "LinBiolinum_R.otf",
    "LinBiolinum_RB.otf",
    "texgyrebonum-regular.otf",
    "texgyreheroscn-bold.otf",
    "LeagueSpartan-Medium.otf",
    "LeagueSpartan-Bold.otf",
    "Inconsolata.otf",
    "mononoki-Regular.ttf",
    "mononoki-Bold.ttf",
    "agave-r-autohinted.ttf",
    "BaskervaldADFStd-Bold.otf",
    "AccanthisADFStd-Bold.otf",
    "VeranaSans-Bold.otf",
    "Cantarell-Bold.otf",
    "EBGaramond12-Bold.otf",
]

HELD_OUT = [
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono.ttf",
    "OpenSans-Regular.ttf",
    "OpenSans-Bold.ttf",
    "OpenSans-Semibold.ttf",
    "Oxygen-Sans.ttf",
    "Oxygen-Sans-Bold.ttf",
    "Play-Regular.ttf",
    "Play-Bold.ttf",
    "texgyreschola-regular.otf",
    "texgyreschola-bold.otf",
    "Verana-Bold.otf",
]


@lru_cache(maxsize=1)
def installed() -> dict[str, Path]:
    return {path.name: path for path in sorted(ROOT.rglob("*.[to]tf"))}


def find(names: list[str]) -> list[str]:
    """Paths of the named files; names what is missing."""
    missing = [name for name in names if name not in installed()]
    if missing:
        raise FileNotFoundError(f"fonts: {missing} not under {ROOT}; run nano/install_fonts.sh")
    return [str(installed()[name]) for name in names]


@lru_cache(maxsize=4096)
def font(path: str, size: int) -> ImageFont.FreeTypeFont:
    """A font file, or Pillow's own font for the empty path (tests need no font package)."""
    if path:
        return ImageFont.truetype(path, size)
    default = ImageFont.load_default(size)
    assert isinstance(default, ImageFont.FreeTypeFont)
    return default
