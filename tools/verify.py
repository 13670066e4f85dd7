"""Check a folder of weights against published checksums or its own manifest.

    python tools/verify.py --folder ./zhixi-diff --checksums zhixi-13b-diff
    python tools/verify.py --folder ./my-diff
    python tools/verify.py --folder ./some-model --checksums ./SHA256SUMS

--checksums takes any file of md5sum's or sha256sum's, or one of the published lists in tools/checksums/:
    SETS
Without it the folder's knowlm_manifest.json is read; without one, the published list is recognised by the files. Prints
OK, BAD or MISSING for every listed file and EXTRA for others; the exit code is 0 only if all are OK.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout holds knowlm/

from tqdm import tqdm

from knowlm.checksums import Checksum, hash_file, published_sets, read_checksums
from knowlm.cli import ArgumentParser, run
from knowlm.manifest import MANIFEST

THREADS = 2  # one disk has little more to give


def main() -> None:
    args = parse_args()
    folder = Path(args.folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; --folder names the one that holds the files")
    files = files_of(folder)
    listing, known = (find_list(args.checksums), {}) if args.checksums else recognise(folder, files)
    listed = read_checksums(listing)
    bad, missing = 0, 0
    for name, verdict in check(folder, listed, known):
        bad, missing = bad + verdict.startswith("BAD"), missing + (verdict == "MISSING")
        say(verdict, name)
    extra = [name for name in files if name not in listed and (folder / name).resolve() != listing.resolve()]
    for name in extra:
        say("EXTRA", name)
    source = listing.stem if listing in published_sets().values() else str(listing)
    if bad or missing:
        raise ValueError(
            f"{folder}: of {len(listed)} files of {source} {bad} are bad and {missing} missing; "
            "fetch them again, with tools/download.py --verify if they are on the hub"
        )
    print(f"{folder}: {len(listed)} files are OK by {source}" + f", {len(extra)} aren't listed" * bool(extra))


def parse_args():
    parser = ArgumentParser(__doc__.replace("SETS", ", ".join(published_sets())))
    parser.add_argument("--folder", required=True, help="folder of the files")
    parser.add_argument("--checksums", metavar="NAME|FILE", help="a published set, or a file of checksums")
    return parser.parse_args()


def find_list(name: str) -> Path:
    if name in published_sets():
        return published_sets()[name]
    if not Path(name).is_file():
        raise ValueError(f"--checksums {name}: neither a file nor a published set ({', '.join(published_sets())})")
    return Path(name)


def files_of(folder: Path) -> list[str]:
    """Names of all files, but for those in hidden folders such as the download's notes."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts[:-1])]


def recognise(folder: Path, files: list[str]) -> tuple[Path, dict[str, str]]:
    """The list that fits the folder, and the MD5s that had to be computed to see it.

    Sets share file names (a difference and the model recovered from it): the first file whose MD5 is in one decides.
    """
    if MANIFEST in files:
        return folder / MANIFEST, {}
    sets = {path: read_checksums(path) for path in published_sets().values()}
    candidates = [path for path, listed in sets.items() if not listed.keys().isdisjoint(files)]
    if not candidates:
        raise ValueError(
            f"{folder}: holds no {MANIFEST} and no file that a published set lists; name a list by --checksums"
        )
    if len(candidates) == 1:
        return candidates[0], {}
    known: dict[str, str] = {}
    shared = [name for name in files if any(name in sets[path] for path in candidates)]
    with progress(folder, shared) as bar:
        for name in shared:
            known[name] = hash_file(folder / name, "md5", bar.update)
            for path in candidates:
                if name in sets[path] and sets[path][name].hex == known[name]:
                    return path, known
    raise ValueError(
        f"{folder}: no file has the MD5 that {' or '.join(path.stem for path in candidates)} lists; "
        "name the one that is meant by --checksums"
    )


def check(folder: Path, listed: dict[str, Checksum], known: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Names and verdicts in the list's order. known: MD5s by name, computed before."""

    def verdict(name: str, advance: Callable[[int], object]) -> str:
        path, wanted = folder / name, listed[name]
        if not path.is_file():
            return "MISSING"
        size = path.stat().st_size
        if wanted.size not in (None, size):
            return f"BAD ({size} bytes, {wanted.size} listed)"
        found = known.get(name) if wanted.algorithm == "md5" else None
        found = found or hash_file(path, wanted.algorithm, advance)
        return "OK" if found == wanted.hex else f"BAD ({wanted.algorithm.upper()} {found})"

    waiting = [name for name in listed if (folder / name).is_file() and name not in known]
    with ThreadPoolExecutor(THREADS) as pool, progress(folder, waiting) as bar:
        yield from zip(listed, pool.map(lambda name: verdict(name, bar.update), listed), strict=True)


def progress(folder: Path, names: list[str]) -> tqdm:
    total = sum((folder / name).stat().st_size for name in names)
    return tqdm(total=total, unit="B", unit_scale=True, desc=f"check {folder.name}", disable=None)


def say(verdict: str, name: str) -> None:
    word, _, detail = verdict.partition(" ")
    tqdm.write(f"{word:<8} {name} {detail}".rstrip(), file=sys.stdout)


if __name__ == "__main__":
    run(main)
