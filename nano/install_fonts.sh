#!/bin/sh
# The Debian packages whose fonts the pictures are drawn with (nano/fonts.py names the files). Run as root.
set -eu
apt-get update -qq
exec apt-get install -y -qq --no-install-recommends \
    fonts-dejavu-core fonts-dejavu-extra fonts-liberation fonts-freefont-ttf fonts-roboto-unhinted fonts-lato \
    fonts-open-sans fonts-cantarell fonts-crosextra-carlito fonts-crosextra-caladea fonts-comfortaa fonts-linuxlibertine \
    fonts-quicksand fonts-noto-core fonts-noto-mono fonts-firacode fonts-urw-base35 fonts-ebgaramond fonts-hack fonts-inconsolata \
    fonts-vollkorn fonts-league-spartan fonts-play fonts-sil-gentium-basic fonts-texgyre fonts-mononoki fonts-jetbrains-mono \
    fonts-inter fonts-karla fonts-dosis fonts-b612 fonts-go fonts-agave fonts-adf-accanthis fonts-adf-gillius \
    fonts-adf-universalis fonts-adf-verana fonts-adf-baskervald fonts-oxygen fonts-sora fonts-tuffy
