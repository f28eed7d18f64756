"""`make demo`: the main job from end to end, without account, token, GPU or network.

A local stand-in for the Hugging Face Hub (`tests/local_hub`) takes the place of the real one;
everything else is what a person runs. The texts are Python's own help, which every Python brings
along: one half of its topics calibrates, the other half is held out.

First a model becomes three quants by one command. Then another one is uploaded, and nobody asks for
it: the watcher finds it, and a runner converts and publishes it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pydoc_data import topics

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.local_hub import LocalHub
from tests.local_hub.texts import add_default_texts

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "examples" / "sample-2m"
OUT = ROOT / "out" / "demo"
SOURCE = "team/sample-2m"
BPW = "3.5,4.5,6"
PICK = "you/sample-2m-MLX-4.5bpw"
TOKENS = "8192"
NEWCOMER = "team/newcomer-1m"
NUM_DOCUMENTS = 4  # of each text that the runner takes; enough for a model of that size

_RULES = """\
min_parameters: 100K     # else a toy
rules:
  - name: small
    authors: [team]
    max_parameters: 1M
    bpw: [5]
    destination: you
"""

_LOAD_AND_GENERATE = """
import dynquant.mlx_backend  # OpenBLAS before MLX: faster on Linux
import sys
from huggingface_hub import snapshot_download
from mlx_lm import generate, load

folder = snapshot_download(sys.argv[1])
print(repr(generate(*load(folder), prompt="The", max_tokens=24)))
"""

_CUT = """
import sys
from pathlib import Path
import mlx.core as mx

source, folder = map(Path, sys.argv[1:])
weights = {}
for file in source.glob("*.safetensors"):
    weights |= mx.load(str(file))
rest = {name for name in weights if ".layers." in name and ".layers.0." not in name}
kept = {name: each for name, each in weights.items() if name not in rest}
mx.save_safetensors(str(folder / "model.safetensors"), kept, {"format": "mlx"})
"""

_UPLOAD = """
import sys
from huggingface_hub import HfApi

api = HfApi()
api.create_repo(sys.argv[1], exist_ok=True)
api.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2])
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
        upload(SOURCE, SAMPLE, environment)
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
        if code := watch_a_newcomer(environment):
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
    """The address of a local Hub that keeps what it holds in `folder`.

    The texts that a runner takes by default are on it.
    """
    with LocalHub(folder) as hub:
        add_default_texts(hub, num_documents=NUM_DOCUMENTS)
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


def watch_a_newcomer(environment: Mapping[str, str]) -> int:
    """One sweep that picks up an upload, and a runner that publishes it; the exit code."""
    upload(NEWCOMER, write_newcomer(OUT / "newcomer"), environment)
    rules = OUT / "watch.yaml"
    rules.write_text(_RULES, encoding="utf-8")
    say(f"\nSomebody uploads {NEWCOMER}. A watcher with these rules sweeps the Hub:\n\n{_RULES}")
    shutil.rmtree(OUT / "runner", ignore_errors=True)  # what was queued by an earlier demo
    environment = {**environment, "DYNQUANT_HOME": str(OUT / "runner")}
    sweep = ("watch", "--once", "--config", str(rules.relative_to(ROOT)))
    for options in (("--dry-run",), ()):
        say(f"$ {shlex.join(('dynquant', *sweep, *options))}")
        if code := run(("-m", "dynquant", *sweep, *options), environment):
            return code
    (job,) = json.loads(ask(("jobs", "list", "--json"), environment))["jobs"]
    say(f"\n$ dynquant runner &\n$ dynquant jobs logs {job['id']} --follow")
    log = (OUT / "runner.log").open("w")
    with (
        log,
        subprocess.Popen(
            [sys.executable, "-m", "dynquant", "runner"],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        ) as runner,
    ):
        try:
            code = run(("-m", "dynquant", "jobs", "logs", job["id"], "--follow"), environment)
        finally:
            runner.terminate()
    return code


def write_newcomer(folder: Path) -> Path:
    """The first block of the sample as a model of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", _CUT, str(SAMPLE), str(folder)], check=True)
    config = json.loads((SAMPLE / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    for file in SAMPLE.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    (folder / "README.md").write_text(
        "---\nlicense: mit\npipeline_tag: text-generation\n---\n# A newcomer\n"
    )
    return folder


def upload(repo_id: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Upload a model with the client that everybody uses."""
    subprocess.run(
        [sys.executable, "-c", _UPLOAD, repo_id, str(folder)],
        env=dict(environment),
        check=True,
        stdout=subprocess.DEVNULL,
    )


def ask(arguments: tuple[str, ...], environment: Mapping[str, str]) -> str:
    """What a command of dynquant prints."""
    return subprocess.run(
        [sys.executable, "-m", "dynquant", *arguments],
        cwd=ROOT,
        env=dict(environment),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


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
