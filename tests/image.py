#!/usr/bin/env python3
"""Checks the container image without Docker: whether it can be built from the files that .dockerignore lets through.

    tests/image.py            cargo reads the manifests, and no file is missing that the code includes
    tests/image.py --build    builds the gateway, too, with the options of `cargo build` that follow
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'include_(?:str|bytes)!\(\s*"([^"]+)"')
# What the steps of the Dockerfile run, and the workspaces that they build.
PROGRAMS = ["release/build", "release/profile.py", "bench/compare.py"]
WORKSPACES = [".", "bench"]


def rules():
    """The rules of .dockerignore, in order: a path or `*`, and whether it is left out. The last one that is about a file
    or a folder above it decides."""
    lines = [line.strip() for line in (ROOT / ".dockerignore").read_text().splitlines()]
    found = [(line.removeprefix("!"), not line.startswith("!")) for line in lines if line and line[0] != "#"]
    assert found[0] == ("*", True), "the first rule leaves everything out"
    assert not any(set("*?[\\") & set(path) for path, _ in found[1:]), "this script knows plain paths only"
    return found[1:]


def context():
    """The files that Docker gets."""
    listed = rules()

    def is_left_out(path):
        about = [left_out for rule, left_out in listed if path == rule or path.startswith(f"{rule}/")]
        return about[-1] if about else True

    files = set()
    for rule, left_out in listed:
        top = ROOT / rule
        assert left_out or top.exists(), f".dockerignore lets {rule} through, which does not exist"
        if left_out or not top.is_dir():
            files.update([] if left_out else [rule])
            continue
        for folder, folders, names in os.walk(top):
            relative = Path(folder).relative_to(ROOT)
            folders[:] = [name for name in folders if not is_left_out(str(relative / name))]
            files.update(str(relative / name) for name in names if not is_left_out(str(relative / name)))
    return files


def missing_includes(folder):
    """Files that the code includes and that Docker does not get."""
    for source in [*folder.glob("src/**/*.rs"), *folder.glob("core/src/**/*.rs")]:
        for included in INCLUDE.findall(source.read_text()):
            if not (source.parent / included).is_file():
                yield f"{source.relative_to(folder)} includes {included}"


def check_dockerfile():
    """The image has a data folder that its user owns, and a health check that asks where the gateway listens."""
    text = (ROOT / "Dockerfile").read_text()
    image = text[text.rindex("\nFROM ") :]
    # 65532 is the user of distroless's `nonroot`.
    assert re.search(r"^FROM \S+:nonroot$", image, re.MULTILINE), "the image has another user"
    assert re.search(r"^COPY --from=build --chown=65532:65532 /data /data$", image, re.MULTILINE), "no data folder"
    check = re.search(r"^HEALTHCHECK .*CMD (.*)$", image, re.MULTILINE)
    assert check[1] == '["/usr/local/bin/roomcast", "health"]', "the health check names an address"


def main():
    check_dockerfile()
    with tempfile.TemporaryDirectory(prefix="roomcast-image-") as name:
        folder = Path(name)
        for path in sorted(context()):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, folder / path)
        assert not (missing := list(missing_includes(folder))), missing
        for program in PROGRAMS:
            assert os.access(folder / program, os.X_OK), f"{program} can't be run"
        for workspace in WORKSPACES:
            # Unlike `cargo metadata`, this fails if a file is missing that a manifest names.
            command = ["cargo", "fetch", "--quiet", "--locked", "--target", "host-tuple"]
            subprocess.run(command, cwd=folder / workspace, check=True)
        if sys.argv[1:2] == ["--build"]:
            command = ["cargo", "build", "--locked", "--bin", "roomcast", *sys.argv[2:]]
            subprocess.run(command, cwd=folder, check=True)
    print("the image can be built from the files that Docker gets")


if __name__ == "__main__":
    main()
