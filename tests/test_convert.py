from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from dynquant.convert import Conversion, Made, Step
from dynquant.errors import (
    ImagesError,
    InfeasibleTargetError,
    InvalidModelError,
    InvalidOptionError,
    NonFiniteError,
    OutputFolderError,
    SensitivitiesError,
    StorageFullError,
    TextError,
    UnsupportedModelError,
    VerificationError,
)
from dynquant.in_process import OutputStore, check, measure, quantize
from dynquant.progress import Progress
from dynquant.quant.formats import DEFAULT_MENU, QuantFormat, parse_menu
from dynquant.quant.ports import Quantizer
from dynquant.quant.recipe import Alignment, Recipe
from dynquant.report.artefacts import cost_table_from_json
from dynquant.report.forecast import forecast
from dynquant.report.size_options import Bounds, size_options
from tests.fakes import (
    FakeOutputs,
    FakeProgress,
    FakeQuantizer,
    FakeWindows,
    make_images,
    make_source,
    make_text,
)
from tests.report.factories import make_layer

LOW, HIGH = QuantFormat(4, 64), QuantFormat(8, 64)
FILES = [
    "dynquant/bits-light.svg",
    "dynquant/bits-dark.svg",
    "dynquant/cost_table.json",
    "dynquant/report.json",
    "dynquant/plan.json",
    "README.md",
]


class Job:
    """One quantization on fakes that share a log."""

    def __init__(self, **quantizer: Any) -> None:
        self.quantizer = FakeQuantizer(**quantizer)
        self.log = self.quantizer.log
        self.outputs = FakeOutputs(log=self.log)
        self.progress = FakeProgress()
        self.sensitivities: list[Any] = []

    def run(self, recipe: Recipe | None = None, *, evaluation: str = "heldout.txt", **options: Any):
        # The annotations let mypy hold the fakes to the ports.
        quantizer: Quantizer[FakeWindows] = self.quantizer
        outputs: OutputStore = self.outputs
        progress: Progress = self.progress
        return quantize(
            options.pop("source", make_source()),
            quantizer,
            recipe or make_recipe(),
            calibration=options.pop("calibration", make_text("calibration.txt")),
            evaluation=make_text(evaluation),
            outputs=outputs,
            progress=progress,
            on_sensitivities=self.sensitivities.append,
            **options,
        )

    def table(self, recipe: Recipe | None = None):
        """A cost table of the same model, from an earlier run."""
        earlier = FakeQuantizer(layers=self.quantizer.layers)
        text = make_text("calibration.txt")
        return measure(earlier, text, recipe or make_recipe(), progress=FakeProgress())


def make_recipe(*targets: float, **overrides: Any) -> Recipe:
    return Recipe(targets_bpw=targets or (4.5,), **overrides)


def aligned(*targets: float, **overrides: Any) -> Recipe:
    alignment = Alignment(**{"low": LOW, "high": HIGH} | overrides)
    return make_recipe(
        *(targets or (6.0,)), menu=(alignment.low, alignment.high), alignment=alignment
    )


def test_questions_about_images_are_on_the_card_and_in_the_command():
    job = Job()
    (made,) = job.run(evaluation_images=make_images("photos"))
    assert made.facts.evaluation_images == make_images("photos").facts
    assert {row.quality.num_images for row in made.facts.rows} == {4}
    assert "--eval-images photos" in made.facts.command


def test_images_to_calibrate_on_are_in_the_cost_table_the_plan_and_the_command():
    job = Job()
    (made,) = job.run(calibration_images=make_images("others"))
    assert made.facts.calibration_images == make_images("others").facts
    assert made.facts.evaluation_images is None
    assert "--calibration-images others" in made.facts.command
    files = job.outputs.finished[made.facts.name]
    table = cost_table_from_json(files["dynquant/cost_table.json"], name="cost_table.json")
    assert table.calibration_images == make_images("others").facts
    assert "questions about 4 images" in files["README.md"]


def test_costs_that_were_measured_on_other_images_are_not_used_again():
    job = Job()
    with pytest.raises(SensitivitiesError):
        job.run(table=job.table(), calibration_images=make_images())


def test_images_are_refused_before_the_work_for_a_model_that_sees_none():
    job = Job(fails={"require_tower": ImagesError("It sees none.")})
    with pytest.raises(ImagesError):
        check(make_source(), job.quantizer, make_recipe(), outputs=job.outputs, has_images=True)
    assert job.log == ["require_tower"]


def test_windows_of_another_process_stand_beside_the_images_of_this_one():
    quantizer, seen = FakeQuantizer(), make_images("photos")
    one, other = (Conversion(make_source(), quantizer, make_recipe()) for _ in range(2))
    one.read(calibration=make_text("a.txt"), evaluation=make_text("b.txt"), evaluation_images=seen)
    other.use_windows(one.windows_to_json(), evaluation_images=seen)
    figures = [each.evaluate({}, {}, FakeProgress()) for each in (one, other)]
    assert figures[0] == figures[1]
    assert figures[0]["original"].num_images == 4


def test_the_steps_come_in_their_order_and_the_folders_take_their_names_last():
    job = Job()
    job.run()
    assert job.log == [
        "check",
        "calibration_windows",
        "evaluation_windows",
        "check_tokenizer",
        "check_source",
        "measure",
        "stage",
        "encode",
        "reconstruct",
        "verify",
        "evaluate",
        *(f"write {name}" for name in FILES),
        "finish",
    ]


def test_several_targets_share_one_measurement_one_encoding_pass_and_one_evaluation():
    job = Job()
    models = job.run(make_recipe(3.0, 4.5, 6.0))
    assert [job.log.count(step) for step in ("measure", "encode", "verify", "evaluate")] == [
        1,
        1,
        3,
        1,
    ]
    assert [model.facts.name for model in models] == [
        "Model-MLX-3.0bpw",
        "Model-MLX-4.5bpw",
        "Model-MLX-6.0bpw",
    ]
    assert list(job.outputs.finished) == [model.facts.name for model in models]
    for model, target in zip(models, (3.0, 4.5, 6.0), strict=True):
        assert model.facts.plan.stored_bpw <= target
        assert model.folder == job.outputs.final(model.facts.name)
        assert model.sample == f"The text of {model.facts.name}"


def test_progress_announces_every_step_that_is_done():
    job = Job()
    job.run()
    announced = {step for steps in job.progress.announced for step in steps}
    assert announced == {
        "check",
        "measure",
        "probe",
        "encode",
        "reconstruct",
        "verify",
        "evaluate",
    }
    assert set(job.progress.done) == announced


def test_the_most_effort_polishes_before_encoding_and_distils_last():
    job = Job()
    job.run(make_recipe(3.0, 4.5, effort="max"))
    wanted = {"measure", "polish", "encode", "reconstruct", "distil"}
    assert [step for step in job.log if step in wanted] == [
        "measure",
        "polish",
        "encode",
        "reconstruct",
        "distil",
        "distil",
    ]


@pytest.mark.parametrize("options", [{"effort": "fast"}, {"encoder": "wls"}])
def test_blocks_are_fitted_neither_with_the_least_effort_nor_with_an_encoder_that_sees_no_inputs(
    options,
):
    job = Job()
    job.run(make_recipe(**options))
    assert "reconstruct" not in job.log


def test_the_least_effort_does_not_probe_and_distillation_can_be_had_alone():
    job = Job()
    job.run(make_recipe(effort="fast", distil=True))
    assert {"encode", "distil"} <= set(job.log)
    assert "polish" not in job.log
    assert not any("probe" in steps for steps in job.progress.announced)


def test_plans_that_were_polished_come_with_their_table():
    recipe = make_recipe(4.5, effort="max")
    first = Job()
    first.run(recipe)
    text = first.outputs.finished["Model-MLX-4.5bpw"]["dynquant/cost_table.json"]
    table = cost_table_from_json(text, name="cost_table.json")
    assert table.polished[4.5] == next(iter(first.quantizer.encoded.values())).formats
    again = Job()
    again.run(recipe, table=table)
    assert "polish" not in again.log
    third = Job()
    third.run(make_recipe(4.5, 6.0, effort="max"), table=table)
    assert "polish" in third.log


def test_with_no_time_left_nothing_is_improved():
    job = Job()
    job.run(make_recipe(effort="max", time_budget_mins=0))
    assert "polish" not in job.progress.done
    assert "distil" not in job.progress.done
    assert "distil" in job.log


def test_the_sizes_share_a_time_budget():
    now_mins = 0.0
    steps: dict[Path, int] = {}

    class Distiller(FakeQuantizer):
        """A step takes a minute, and one size needs no more than two."""

        def distil(self, plans, windows, *, effort, keep_going, on_step):
            nonlocal now_mins
            (folder,) = plans
            steps[folder] = 0
            while keep_going() and steps[folder] < (2 if folder.name == "second" else 99):
                steps[folder] += 1
                now_mins += 1

    recipe = make_recipe(3.0, 4.5, 6.0, effort="fast", distil=True, time_budget_mins=30)
    job = Conversion(make_source(), Distiller(), recipe, clock=lambda: 60 * now_mins)
    job.read(calibration=make_text("a"), evaluation=make_text("b"))
    folders = dict(zip(job.targets, map(Path, ("first", "second", "third")), strict=True))
    made = Made(folders=folders)
    for step in (Step.MEASURE, Step.ENCODE):
        job.do(step, made, FakeProgress())
    assert list(steps.values()) == [10, 2, 18]


def test_a_cost_table_serves_for_its_calibration_text_under_another_name():
    job = Job()
    job.run(calibration=make_text("renamed.txt", content="calibration.txt"), table=job.table())
    assert "measure" not in job.log
    other = make_text("calibration.txt", content="something else")
    with pytest.raises(SensitivitiesError, match="measured on another calibration text"):
        job.run(calibration=other, table=job.table())


def test_every_folder_has_its_card_pictures_and_artefacts():
    job = Job()
    (model,) = job.run(make_recipe(4.5))
    files = job.outputs.finished[model.facts.name]
    assert list(files) == FILES
    plan = json.loads(files["dynquant/plan.json"])
    assert plan["stored_bpw"] == model.facts.plan.stored_bpw
    assert plan["command"].startswith("dynquant quantize org/Model --bpw 4.5 --out quants")
    assert plan["calibration"]["name"] == "calibration.txt"
    report = json.loads(files["dynquant/report.json"])
    labels = [row["label"] for row in report["rows"]]
    assert labels == ["Original (bfloat16)", "Uniform 4-bit, group 64", "This model"]
    assert report["evaluation"]["name"] == "heldout.txt"
    table = cost_table_from_json(files["dynquant/cost_table.json"], name="it")
    assert table == job.table()
    assert files["README.md"].startswith("---\n")


def test_the_uniform_baseline_is_the_one_of_nearest_size():
    job = Job()
    (model,) = job.run(make_recipe(4.5))
    (uniform,) = job.quantizer.uniform.values()
    mine = model.facts.plan.stored_bpw
    assert abs(uniform.stored_bpw - mine) <= 0.25
    assert model.facts.rows[1].stored_bpw == uniform.stored_bpw


@pytest.mark.parametrize(
    ("recipe", "error"),
    [
        (make_recipe(1.0), InfeasibleTargetError),
        (make_recipe(4.5, 17.0), InfeasibleTargetError),
        (aligned(low=HIGH, high=LOW), InvalidOptionError),
    ],
)
def test_a_request_that_cannot_work_is_refused_before_any_text_is_read(recipe, error):
    job = Job()
    with pytest.raises(error):
        job.run(recipe)
    assert job.log == []
    assert job.sensitivities == []


def test_a_folder_in_the_way_is_refused_before_measuring():
    job = Job()
    job.outputs.foreign = {"Model-MLX-4.5bpw"}
    with pytest.raises(OutputFolderError):
        job.run()
    assert job.log == ["check"]


def test_evaluating_on_the_calibration_text_is_refused_before_measuring():
    job = Job()
    with pytest.raises(TextError):
        job.run(evaluation="calibration.txt")
    assert "measure" not in job.log


def test_a_tokenizer_that_would_be_another_one_is_refused_before_measuring():
    job = Job(fails={"check_tokenizer": UnsupportedModelError("It differs.")})
    with pytest.raises(UnsupportedModelError):
        job.run()
    assert "measure" not in job.log
    quantizer = FakeQuantizer(fails={"check_tokenizer": UnsupportedModelError("It differs.")})
    with pytest.raises(UnsupportedModelError):
        measure(quantizer, make_text(), make_recipe(), progress=FakeProgress())
    assert "measure" not in quantizer.log


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("measure", NonFiniteError("NaN", layer="layers.0")),
        ("encode", StorageFullError("The disk is full.")),
        ("verify", VerificationError("It does not load.")),
        ("evaluate", NonFiniteError("NaN", layer="logits")),
    ],
)
def test_nothing_is_finished_when_a_step_fails(step, error):
    job = Job(fails={step: error})
    with pytest.raises(type(error)):
        job.run(make_recipe(3.0, 4.5))
    assert job.outputs.finished == {}
    assert "finish" not in job.log


def test_a_cost_table_is_used_again_instead_of_measuring():
    fresh, again = Job(), Job()
    (first,) = fresh.run()
    (second,) = again.run(table=fresh.table())
    assert "measure" not in again.log
    assert first.facts == second.facts
    assert again.quantizer.importance == fresh.quantizer.importance
    assert again.outputs.finished == fresh.outputs.finished


def test_a_smaller_menu_takes_its_costs_from_a_larger_table():
    job = Job()
    menu = parse_menu("3g64,8g64")
    (model,) = job.run(make_recipe(menu=menu), table=job.table())
    assert set(model.facts.plan.formats.values()) == set(menu)


def test_a_table_without_the_formats_of_the_menu_is_refused():
    job = Job()
    table = job.table(make_recipe(menu=parse_menu("3g64,8g64")))
    with pytest.raises(SensitivitiesError, match=r"no cost of '2g32'.*--formats"):
        job.run(table=table)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"source_sha": "beef"}, "another model"),
        ({"encoder": "wls"}, "--encoder wls"),
        ({"effort": "fast"}, "--effort fast"),
        ({"seed": 7}, "--seed 7"),
        ({"calibration": FakeQuantizer().calibration_windows(make_text("a"), 5).facts}, "text"),
    ],
)
def test_a_table_of_another_job_is_refused(change, says):
    job = Job()
    with pytest.raises(SensitivitiesError, match=says):
        job.run(table=dataclasses.replace(job.table(), **change))
    assert "stage" not in job.log


def test_a_table_of_a_model_with_other_layers_is_refused():
    other = Job(layers=(make_layer(path="layers.0", shape=(64, 128)),))
    job = Job()
    with pytest.raises(SensitivitiesError, match="another model"):
        job.run(table=other.table())


def test_the_alignment_method_hands_out_its_sensitivities_and_writes_no_cost_table():
    job = Job()
    (model,) = job.run(aligned(6.0))
    assert job.log[4:6] == ["check_source", "align"]
    assert job.sensitivities == [{f"layers.{i}": float(i) for i in range(6)}]
    assert "dynquant/cost_table.json" not in job.outputs.finished[model.facts.name]
    assert model.facts.method == "alignment"
    names = [fmt.name for fmt in model.facts.plan.formats.values()]
    assert names == ["4g64", "4g64", "4g64", "4g64", "8g64", "8g64"]


def test_known_sensitivities_are_not_measured_again():
    job = Job()
    known = {f"layers.{i}": -float(i) for i in range(6)}
    (model,) = job.run(aligned(6.0, sensitivities=known))
    assert "align" not in job.log
    assert model.facts.plan.formats["layers.0"] == HIGH


def test_a_layer_that_only_one_format_fits_needs_no_sensitivity():
    layers = (
        make_layer(path="layers.0", shape=(128, 128)),
        make_layer(path="layers.1", shape=(128, 128)),
        make_layer(path="narrow", shape=(128, 48)),
    )
    job = Job(layers=layers)
    (model,) = job.run(aligned(9.0))
    assert model.facts.plan.formats["narrow"].name == "unquantized"
    assert "narrow" not in job.sensitivities[0]


def test_a_gap_that_the_menu_cannot_close_is_a_note_on_the_card():
    job = Job(layers=(make_layer(path="layers.0", shape=(128, 128)),))
    (model,) = job.run(make_recipe(5.0, menu=parse_menu("4g64,8g64")))
    (note,) = model.facts.notes
    assert note.startswith("It stores 0.500 bits per weight less")
    assert "0.500 bits per weight less" in job.outputs.finished[model.facts.name]["README.md"]


def test_tensors_of_the_source_that_are_left_out_are_a_note_on_the_card():
    job = Job()
    job.quantizer.notes = ("Left out: the tensors 'mtp.fc'.",)
    (model,) = job.run(make_recipe(4.5))
    assert model.facts.notes[0] == "Left out: the tensors 'mtp.fc'."
    assert "Left out: the tensors 'mtp.fc'." in job.outputs.finished[model.facts.name]["README.md"]


def test_a_forecast_says_why_a_model_cannot_be_made_smaller():
    quantizer = FakeQuantizer(layers=(make_layer(shape=(4, 66)),))
    (found,) = forecast(make_source(), quantizer, make_recipe(16.0))
    assert found.notes[-1].startswith("No layer can be quantized")
    with pytest.raises(InfeasibleTargetError, match="No layer can be quantized") as caught:
        forecast(make_source(), quantizer, make_recipe(4.0))
    assert caught.value.min_bpw == caught.value.max_bpw == 16.0
    with pytest.raises(InfeasibleTargetError, match="No layer can be quantized"):
        size_options(make_source(), quantizer, make_recipe(), Bounds(memory_bytes=10_000))


def test_a_source_that_stock_mlx_lm_reads_otherwise_is_not_measured():
    job = Job(fails={"check_source": InvalidModelError("Another model.")})
    with pytest.raises(InvalidModelError):
        job.run()
    assert "measure" not in job.log
    assert "stage" not in job.log


def test_parts_of_the_source_that_are_left_out_stand_in_forecast_and_facts():
    note = "The vision part is left out."
    job = Job()
    job.quantizer.notes = (note,)
    (model,) = job.run(make_recipe(4.5))
    assert note in model.facts.notes
    (found,) = forecast(make_source(), job.quantizer, make_recipe(4.5))
    assert found.notes == (note,)


def test_a_table_says_which_dtype_results_are_stored_in():
    job = Job()
    table = job.table()
    other = dataclasses.replace(table.inventory, dtype="bfloat16")
    job.run(table=dataclasses.replace(table, inventory=other))
    assert job.quantizer.stored_as == "bfloat16"


def test_a_plan_close_to_its_target_has_no_note():
    layers = tuple(make_layer(path=f"layers.{i}", shape=(128, 128)) for i in range(40))
    (model,) = Job(layers=layers).run(make_recipe(4.5))
    assert 0 <= 4.5 - model.facts.plan.stored_bpw < 0.01
    assert model.facts.notes == ()


def test_the_facts_carry_recipe_and_source():
    job = Job()
    source = make_source(name="my-model", is_repo=False, is_private=True)
    (model,) = job.run(make_recipe(context_tokens=1000, encoder="wls"), source=source)
    facts = model.facts
    assert (facts.source, facts.source_is_repo, facts.encoder) == ("my-model", False, "wls")
    assert facts.memory_bytes == math.ceil((facts.rows[-1].num_bytes + 10_000) * 1.05)
    assert facts.versions == {"mlx": "0"}
    assert facts.license_fields == {"license": "mit"}
    assert facts.source_is_private


def test_a_forecast_counts_sizes_from_the_inventory_alone():
    quantizer = FakeQuantizer()
    recipe = make_recipe(3.0, 4.5, context_tokens=100, calibration_tokens=11)
    low, high = forecast(make_source(), quantizer, recipe)
    assert quantizer.log == []
    assert (low.target_bpw, high.target_bpw) == (3.0, 4.5)
    assert high.num_parameters == 6 * 128 * 128
    assert high.source_bytes == 2 * high.num_parameters
    assert high.size_bytes == round(4.5 * high.num_parameters / 8)
    assert high.conversion_disk_bytes == high.source_bytes + 2 * high.size_bytes
    assert high.memory_bytes == math.ceil((high.size_bytes + 1000) * 1.05)
    assert high.conversion_memory_bytes == 77
    assert (high.min_bpw, high.max_bpw) == (2.25, 16.0)


def test_a_forecast_refuses_the_targets_that_quantizing_refuses():
    with pytest.raises(InfeasibleTargetError) as caught:
        forecast(make_source(), FakeQuantizer(), make_recipe(2.0))
    assert (caught.value.min_bpw, caught.value.max_bpw) == (2.25, 16.0)


def test_a_forecast_finds_the_target_that_fits_a_memory():
    quantizer = FakeQuantizer()
    recipe = make_recipe(context_tokens=1)
    (option,) = size_options(make_source(), quantizer, recipe, Bounds(memory_bytes=100_000))
    found = option.forecast
    assert found.min_bpw <= found.target_bpw <= found.max_bpw
    assert found.memory_bytes <= 100_000 * 0.75
    with pytest.raises(InfeasibleTargetError):
        size_options(make_source(), quantizer, recipe, Bounds(memory_bytes=10_000))


def test_measuring_gives_the_table_of_the_whole_menu():
    progress = FakeProgress()
    table = measure(FakeQuantizer(), make_text(), make_recipe(seed=3), progress=progress)
    assert table.seed == 3
    assert table.inventory.layers[0].formats == DEFAULT_MENU
    assert progress.announced == [{"check": 1}, {"measure": 13, "probe": 6}]
