#!/usr/bin/env bash
# Gather recordings of people and instruments from two packages of Debian and Ubuntu.
#
# Usage: [NAME=VALUE ...] scripts/real_corpus.sh
#
# OUT, a folder of its own, gets
#
#   clips/, licenses/       the recordings, and the copyright files of the packages
#   train.tsv, valid.tsv    manifests for pretraining, without the test clips below
#   language/               18 languages: train.tsv has letters, test.tsv syllables
#   family/                 10 families of instruments: two thirds in train.tsv, the others in test.tsv
#
# which 'mae-ast study NAME data=real' uses. The packages are
#
#   klettres-data      letters and syllables, spoken for KLettres; GPL, version 2 or later
#   sonic-pi-samples   sampled instruments of Sonic Pi; CC0 or, where not named, MIT
#
# apt-get downloads them, without installing anything. A language was recorded by one or two
# speakers; so its clips share voice, room and level. The command mae-ast must be on the PATH.
set -euo pipefail

# Variables and their defaults:
OUT=${OUT:-real}              # folder of the corpus
PACKAGES=${PACKAGES:-}        # folder with the .deb files; empty: download
ALSO=${ALSO:-}                # further folder of audio for pretraining, such as demo/corpus/clips
MAX_TEST=${MAX_TEST:-60}      # syllables of a language in test.tsv; the others are for pretraining
MIN_FAMILY=${MIN_FAMILY:-8}   # recordings that an instrument's family needs

case ${1:-} in -h | --help)
  sed -n '2,/^case /{/^#/{s/^# \{0,1\}//p;d;};/^[A-Z]/p;/^$/p;}' "$0"
  exit
  ;;
esac

fail() {
  echo "${0##*/}: error: $*" >&2
  exit 1
}

for command in dpkg mae-ast; do
  command -v "$command" > /dev/null || fail "$command: not found on the PATH"
done
mkdir -p "$OUT"
out=$(cd "$OUT" && pwd)

marker=$out/.real_corpus # in folders that this script made
if [[ ! -f $marker ]]; then
  for folder in clips licenses language family; do
    [[ ! -e $out/$folder ]] || fail "OUT=$OUT: has $folder, which this script did not make"
  done
fi
packages=${PACKAGES:-$out/packages}
[[ -z $PACKAGES || -d $PACKAGES ]] || fail "PACKAGES=$PACKAGES: no such folder"

# find_package NAME: path of its newest .deb file
find_package() {
  find "$packages" -name "$1_*.deb" | sort -V | tail -n 1
}

names=(klettres-data sonic-pi-samples)
if [[ -z $PACKAGES ]]; then
  command -v apt-get > /dev/null || fail "apt-get: not found; PACKAGES names a folder of .deb files"
  mkdir -p "$packages"
  for name in "${names[@]}"; do
    [[ -n $(find_package "$name") ]] || (cd "$packages" && apt-get download "$name") ||
      fail "apt-get download $name: failed; 'apt-get update' may help"
  done
fi

unpacked=$out/unpacked
rm -rf "$unpacked"
for name in "${names[@]}"; do
  package=$(find_package "$name")
  [[ -n $package ]] || fail "$packages: has no ${name}_*.deb"
  mkdir -p "$unpacked"
  dpkg -x "$package" "$unpacked"
done
touch "$marker"
rm -rf "$out"/{clips,licenses,language,family}
mkdir "$out/licenses"
for name in "${names[@]}"; do
  cp "$unpacked/usr/share/doc/$name/copyright" "$out/licenses/$name"
done

# put TARGET FILE ...: move files below clips/
put() {
  mkdir -p "$out/clips/$1"
  mv "${@:2}" "$out/clips/$1"
}

shopt -s nullglob
for folder in "$unpacked"/usr/share/klettres/*/; do
  language=$(basename "$folder")
  letters=("$folder"alpha/*.ogg) syllables=("$folder"syllab/*.ogg)
  count=${#syllables[@]}
  if ((${#letters[@]} == 0)); then continue; fi
  if ((count == 0)); then
    put "unlabelled/$language" "${letters[@]}"
    continue
  fi
  put "language/train/$language" "${letters[@]}"
  for ((n = 0; n < count; n++)); do # evenly spaced
    if ((count <= MAX_TEST || n * MAX_TEST / count != (n + 1) * MAX_TEST / count)); then
      put "language/test/$language" "${syllables[n]}"
    else
      put "unlabelled/$language" "${syllables[n]}"
    fi
  done
done

samples=$unpacked/usr/share/sonic-pi/samples
for family in $(cd "$samples" && printf '%s\n' *.flac | sed 's/_.*//' | sort -u); do
  files=("$samples/${family}"_*.flac)
  for n in "${!files[@]}"; do
    if ((${#files[@]} < MIN_FAMILY)); then
      put "unlabelled/$family" "${files[n]}"
    elif ((n % 3 == 2)); then
      put "family/test/$family" "${files[n]}"
    else
      put "family/train/$family" "${files[n]}"
    fi
  done
done
rm -r "$unpacked"

for task in language family; do
  mae-ast prepare folders "$out/clips/$task" --out "$out/$task" --valid 0
done
folders=("$out"/clips/{language/train,family/train,unlabelled})
mae-ast manifest "${folders[@]}" ${ALSO:+"$ALSO"} --out "$out" --valid 0.05
echo "licenses of the recordings: $out/licenses"
