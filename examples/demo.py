"""`make demo`: the main job from end to end, without account, token, GPU or network.

A local stand-in for the Hugging Face Hub (`tests/local_hub`) takes the place of the real one;
everything else is what a person runs. The texts are Python's own help, which every Python brings
along: one half of its topics calibrates, the other half is held out.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pydoc_data import topics

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "examples" / "sample-2m"
OUT = ROOT / "out" / "demo"
SOURCE = "team/sample-2m"
BPW = "3.5,4.5,6"
PICK = "you/sample-2m-MLX-4.5bpw"
TOKENS = "8192"

_LOAD_AND_GENERATE = """
import dynquant.mlx_backend  # OpenBLAS before MLX: faster on Linux
import sys
from huggingface_hub import snapshot_download
from mlx_lm import generate, load

folder = snapshot_download(sys.argv[1])
print(repr(generate(*load(folder), prompt="The", max_tokens=24)))
"""


def main() -> int:
    """Run the demo; returns the exit code of the first command that fails."""
    texts = write_texts(OUT / "texts")
    with local_hub(OUT / "hub") as url:
        environment = os.environ | {
            "HF_ENDPOINT": url,
            "HF_HOME": str(OUT / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_TOKEN": "hf_local",
        }
        put_the_source_there(environment)
        say(f"\nA model is on the local Hub: {url}/{SOURCE}")
        commands = (
            ("dynquant", "plan", SOURCE, "--bpw", BPW, "--context", "256"),
            (
                *("dynquant", "convert", SOURCE, "--bpw", BPW, "--to", "you"),
                *("--out", "out/demo/quants", "--context", "256"),
                *("--calibration", texts[0], "--calibration-tokens", TOKENS),
                *("--eval", texts[1], "--eval-tokens", TOKENS),
            ),
        )
        for command in commands:
            say(f"\n$ {shlex.join(command)}")
            if code := run(("-m", *command), environment):
                return code
        say(f"\nDownloaded again and run with stock mlx-lm in a fresh process ({PICK}):")
        if code := run(("-c", _LOAD_AND_GENERATE, PICK), environment):
            return code
        say(f"\nIts page, as on the Hub: {url}/{PICK}")
        if sys.stdin.isatty() and sys.stdout.isatty():
            input("Look at it in a browser; press Enter to stop. ")
        else:
            say("To look at it in a browser: make hub")
    return 0


def write_texts(folder: Path) -> tuple[str, str]:
    """Two texts that share no paragraph; their paths from the repository's root."""
    pages = "\n\n".join(text for _, text in sorted(topics.topics.items()))
    # Topics repeat each other's paragraphs; each counts once, so that the halves share none.
    paragraphs = list(dict.fromkeys(pages.split("\n\n")))
    half = len(paragraphs) // 2
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "python-help-1.txt", folder / "python-help-2.txt"
    for path, part in zip(paths, (paragraphs[:half], paragraphs[half:]), strict=True):
        path.write_text("\n\n".join(part), encoding="utf-8")
    return str(paths[0].relative_to(ROOT)), str(paths[1].relative_to(ROOT))


@contextmanager
def local_hub(folder: Path) -> Iterator[str]:
    """The address of a local Hub that keeps what it holds in `folder`."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.local_hub", "--folder", str(folder), "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def put_the_source_there(environment: Mapping[str, str]) -> None:
    """Upload `examples/sample-2m` with the client that everybody uses."""
    code = (
        "import sys; from huggingface_hub import HfApi; api = HfApi()\n"
        "api.create_repo(sys.argv[1], exist_ok=True)\n"
        "api.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2])"
    )
    subprocess.run(
        [sys.executable, "-c", code, SOURCE, str(SAMPLE)],
        env=dict(environment),
        check=True,
        stdout=subprocess.DEVNULL,
    )


def run(arguments: tuple[str, ...], environment: Mapping[str, str]) -> int:
    """Run Python with `arguments` in the repository's root; returns its exit code."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=dict(environment), check=False
    ).returncode


def say(text: str) -> None:
    """Print at once, so that it stands where it belongs among what the commands print."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
