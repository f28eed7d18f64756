"""`make demo`: the main job from end to end, without account, token, GPU or network.

A local stand-in for the Hugging Face Hub (`local_hub`) takes the place of the real one;
everything else is what a person runs. The texts are Python's own help, which every Python brings
along: one half of its topics calibrates, the other half is held out.

First one command makes three quants of a model. Then another model is uploaded: the watcher finds
it, and a runner converts and publishes it. Last, a model that sees images is converted, and both of
its stock runtimes answer.

Every demo starts from nothing and leaves its Hub in out/demo/hub, for `make hub`.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from pydoc_data import topics

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dynquant.jobs.board import DatabaseBoard
from dynquant.jobs.job import TERMINAL, Job, JobState
from dynquant.settings import Settings
from local_hub import LocalHub
from local_hub.texts import add_default_texts
from tests.web.children import running
from tests.web.offline import TOKEN, USER, environment

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "examples" / "sample-2m"
OUT = ROOT / "out" / "demo"
SOURCE = "team/sample-2m"
BPW = "3.5,4.5,6"
PICK = f"{USER}/team__sample-2m-MLX-4.5bpw"
# Enough to show every step; the defaults are 16 times that, and the effort `normal`.
TOKENS = "1024"
EFFORT = "fast"
NEWCOMER = "team/newcomer-1m"
NUM_DOCUMENTS = 2  # of each text that the runner takes, of some 4,000 characters
POLL_SECS = 0.2

_CARD = b"---\nlicense: mit\npipeline_tag: text-generation\n---\n# A small model\n"

_RULES = f"""\
min_parameters: 100K     # else a toy
rules:
  - name: small
    authors: [team]
    max_parameters: 1M
    bpw: [5]
    destination: {USER}
"""

_LOAD_AND_GENERATE = """
import dynquant.quant.mlx  # OpenBLAS before MLX: faster on Linux
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

_SEE = """
import dynquant.quant.mlx  # OpenBLAS before MLX: faster on Linux
import sys
from mlx_vlm import generate, load
from mlx_vlm.prompt_utils import apply_chat_template
from mlx_vlm.utils import load_config
from PIL import Image

folder, picture = sys.argv[1:]
Image.linear_gradient("L").convert("RGB").save(picture)
model, processor = load(folder)
asked = apply_chat_template(processor, load_config(folder), "The", num_images=1)
for name, prompt, image in (("an image", asked, picture), ("text", "The", None)):
    found = generate(model, processor, prompt, image=image, max_tokens=12, verbose=False)
    print(f"  mlx-vlm, of {name}: {found.text!r}")
"""

_READ = """
import dynquant.quant.mlx
import sys
from mlx_lm import generate, load

print(f"  mlx-lm, of text: {generate(*load(sys.argv[1]), prompt='The', max_tokens=12)!r}")
"""

_NEXT = f"""
Try next:
  make hub      the pages of this Hub in a browser: {PICK} and its card
  make serve    the same without a command line: choose a model, press "Convert"
With the real Hub, after '. .venv/bin/activate':
  dynquant plan Qwen/Qwen3-8B --bpw 4.5               what it would take; reads only headers
  dynquant quantize Qwen/Qwen3-0.6B --bpw 4.5 --out quants
The demo says --effort {EFFORT} and takes few tokens; the defaults take longer and lose less.
"""


def main() -> int:
    """Run the demo; returns the exit code of the first command that fails."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    if is_open(OUT / "hub"):
        say("Another program has the demo's Hub open, a demo or 'make hub': stop it first.")
        return 1
    shutil.rmtree(OUT, ignore_errors=True)
    try:
        with LocalHub(OUT / "hub", clock=lambda: datetime.now(UTC)) as hub:
            fill(hub)
            return convert(hub) or watch_a_newcomer(hub) or see(hub) or say(_NEXT)
    except KeyboardInterrupt:
        say("\nStopped. 'make demo' starts again from the beginning.")
        return 130


def is_open(folder: Path) -> bool:
    """Whether a process has the local Hub in `folder` open."""
    state = folder / "state.db"
    if not state.exists():
        return False
    with closing(sqlite3.connect(state, timeout=0)) as database:
        try:
            database.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return True
        except sqlite3.DatabaseError:  # half written
            return False
    return False


def fill(hub: LocalHub) -> None:
    """A user, a model, and the texts that a runner takes by default."""
    hub.after_request = lambda _: hub.requests.clear()
    hub.add_user(USER, token=TOKEN, orgs={"team": "write"})
    files = {file.name: file for file in SAMPLE.iterdir() if file.is_file()}
    upload(hub, SOURCE, {**files, "README.md": _CARD})
    add_default_texts(hub, num_documents=NUM_DOCUMENTS)


def convert(hub: LocalHub) -> int:
    """Plan, convert to three sizes, publish, download, generate; the exit code."""
    texts = write_texts(OUT / "texts")
    commands = (
        ("dynquant", "plan", SOURCE, "--bpw", BPW, "--context", "256"),
        (
            *("dynquant", "convert", SOURCE, "--bpw", BPW, "--to", USER),
            *("--out", "out/demo/quants", "--context", "256", "--effort", EFFORT),
            *("--calibration", texts[0], "--calibration-tokens", TOKENS),
            *("--eval", texts[1], "--eval-tokens", TOKENS),
        ),
    )
    say(f"A model is on a Hub of this machine alone: {hub.url}/{SOURCE}")
    variables = environment(hub, OUT)
    for command in commands:
        say(f"\n$ {shlex.join(command)}")
        if code := run(("-m", *command), variables):
            return code
    say(f"\nDownloaded again and run with stock mlx-lm in a fresh process ({PICK}):")
    return run(("-c", _LOAD_AND_GENERATE, PICK), variables)


def watch_a_newcomer(hub: LocalHub) -> int:
    """One sweep that picks up an upload, and a runner that publishes it; the exit code."""
    variables = environment(hub, OUT)
    rules = OUT / "watch.yaml"
    rules.write_text(_RULES, encoding="utf-8")
    sweep = ("dynquant", "watch", "--once", "--config", str(rules.relative_to(ROOT)))
    upload(hub, NEWCOMER, write_newcomer(OUT / "newcomer"))
    say(f"\nA runner waits for jobs, and {NEWCOMER} is uploaded.\n\n$ dynquant runner &")
    log = OUT / "runner.log"
    with running([sys.executable, "-m", "dynquant", "runner"], variables, log=log) as runner:
        say(f"\nA watcher with these rules sweeps the Hub:\n\n{_RULES}\n$ {shlex.join(sweep)}")
        if code := run(("-m", *sweep), variables):
            return code
        with closing(DatabaseBoard(Settings.from_environment(variables).database_url)) as board:
            (job,) = board.list()
            say(f"\nThe runner takes the job ('dynquant jobs logs {job.id}' would tell):\n")
            ended = follow(board, job.id, runner)
    if ended.state is not JobState.PUBLISHED:
        why = ended.sentence if ended.state in TERMINAL else "The runner ended before the job did."
        say(f"\nNot published: {why} More is in {log.relative_to(ROOT)}.")
        return 1
    say(f"\nPublished: {', '.join(f'{hub.url}/{each.repo_id}' for each in ended.results)}")
    return 0


def see(hub: LocalHub) -> int:
    """A model that sees images, from a folder to a folder, in both stock runtimes; the exit code.

    The language model is the newcomer; the tower was never trained, so it only shows that images
    get through.
    """
    variables, texts = environment(hub, OUT), write_texts(OUT / "texts")
    source, quants = OUT / "seeing-1m", OUT / "seeing"
    language = OUT / "newcomer-folder"
    language.mkdir()
    for name, content in write_newcomer(OUT / "newcomer").items():
        data = content if isinstance(content, bytes) else content.read_bytes()
        (language / name).write_bytes(data)
    if code := run(("examples/vision_model.py", str(language), str(source)), variables):
        return code
    say("\nA model that sees images: its tower stays as it is, its language model is quantized.")
    command = (
        *("dynquant", "quantize", str(source.relative_to(ROOT)), "--bpw", "8", "--effort", EFFORT),
        *("--out", str(quants.relative_to(ROOT)), "--context", "256"),
        *("--calibration", texts[0], "--calibration-tokens", TOKENS),
        *("--eval", texts[1], "--eval-tokens", TOKENS),
    )
    say(f"\n$ {shlex.join(command)}")
    if code := run(("-m", *command), variables):
        return code
    (quant,) = (folder for folder in quants.iterdir() if folder.is_dir())
    say("\nWhat stock runtimes write in fresh processes:")
    seen = run(("-c", _SEE, str(quant), str(OUT / "picture.png")), variables)
    return seen or run(("-c", _READ, str(quant)), variables)


def follow(board: DatabaseBoard, job_id: str, runner: subprocess.Popen[bytes]) -> Job:
    """Show a bar for each step of a job until it ends, or its runner does."""
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        step, bar = "wait", bars.add_task("wait", total=None)
        while True:
            job = board.get(job_id)
            if job.progress is not None and job.progress.step != step:
                bars.update(bar, total=1, completed=1)
                step, bar = job.progress.step, bars.add_task(job.progress.step, total=1)
            if job.progress is not None:
                bars.update(bar, completed=job.progress.fraction)
            if job.state in TERMINAL or runner.poll() is not None:
                break
            time.sleep(POLL_SECS)
        if job.state is JobState.PUBLISHED:
            bars.update(bar, total=1, completed=1)
    return job


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


def write_newcomer(folder: Path) -> dict[str, Path | bytes]:
    """The files of a model of its own: the first block of the sample."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", _CUT, str(SAMPLE), str(folder)], check=True)
    config = json.loads((SAMPLE / "config.json").read_text(encoding="utf-8"))
    return {
        **{file.name: file for file in SAMPLE.glob("tokenizer*")},
        "model.safetensors": folder / "model.safetensors",
        "config.json": json.dumps(config | {"num_hidden_layers": 1}).encode(),
        "README.md": _CARD,
    }


def upload(hub: LocalHub, repo_id: str, files: Mapping[str, Path | bytes]) -> None:
    """Put a model on the Hub, as of now."""
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.000Z}"
    hub.add(repo_id, files, created_at=now, last_modified=now)


def run(arguments: tuple[str, ...], variables: Mapping[str, str]) -> int:
    """Run Python with `arguments` in the repository's root; returns its exit code."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=dict(variables), check=False
    ).returncode


def say(text: str) -> int:
    """Print at once, so that it stands where it belongs among what commands print; returns 0."""
    print(text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
