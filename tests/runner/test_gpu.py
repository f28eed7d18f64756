"""NVIDIA GPUs: recorded answers of `nvidia-smi`, and a multiplication on MLX's own device."""

from __future__ import annotations

import sys

import pytest

from dynquant.runner import gpu
from dynquant.runner.gpu import Gpu, gpu_problem, gpu_sentence, gpus, kernel_problem

# As an H200 answered the query (driver 580.159.04), and as two smaller ones would.
H200 = "NVIDIA H200, 580.159.04, 143771, 143167, 9.0\n"
TWO = "Tesla T4, 580.65.06, 15360, 15000, 7.5\nTesla T4, 580.65.06, 15360, 15000, 7.5\n"


def make_gpu(**overrides) -> Gpu:
    (found,) = gpus(lambda _: H200)
    return Gpu(**{name: getattr(found, name) for name in Gpu.__slots__} | overrides)


def test_gpus_are_read_from_the_drivers_own_program():
    (found,) = gpus(lambda _: H200)
    assert (found.name, found.driver, found.capability) == ("NVIDIA H200", "580.159.04", 9.0)
    assert found.memory_bytes == 143771 << 20
    assert len(gpus(lambda _: TWO)) == 2


@pytest.mark.parametrize(
    "said",
    ["", "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
     "Quadro, [N/A], [N/A], [N/A], [N/A]\n"],
)  # fmt: skip
def test_a_machine_whose_driver_names_no_gpu_has_none(said):
    assert gpus(lambda _: said) == ()


def test_a_gpu_that_can_work_is_described():
    assert gpu_problem(make_gpu(), mlx_device="gpu") is None
    sentence = gpu_sentence([make_gpu()])
    assert "NVIDIA H200, 151 GB" in sentence
    assert "driver 580.159.04" in sentence
    assert "first of 2 GPUs" in gpu_sentence(gpus(lambda _: TWO))


def test_an_old_driver_an_old_gpu_and_the_wrong_build_of_mlx_are_each_told():
    assert "driver 580 or newer" in str(gpu_problem(make_gpu(driver="550.90.07"), mlx_device="gpu"))
    assert "no kernels for" in str(gpu_problem(make_gpu(capability=6.1), mlx_device="gpu"))
    assert "make setup CUDA=1" in str(gpu_problem(make_gpu(), mlx_device="cpu"))


def test_kernels_are_tried_on_mlxs_device_and_compared(tmp_path):
    assert kernel_problem(tmp_path) is None


def test_a_process_that_a_broken_driver_ends_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(
        gpu, "_MULTIPLY", "raise RuntimeError('CUDA driver version is insufficient')"
    )
    assert "CUDA driver version is insufficient" in str(kernel_problem(tmp_path))
    monkeypatch.setattr(gpu, "_MULTIPLY", "import os; os.abort()")
    assert "nvidia-smi" in str(kernel_problem(tmp_path))


def test_the_doctor_tells_of_a_gpu_only_where_one_is(tmp_path, monkeypatch):
    from dynquant.runner import doctor

    monkeypatch.setattr(doctor, "gpus", lambda: (make_gpu(),))
    environment = {"DYNQUANT_HOME": str(tmp_path), "DYNQUANT_RUNNER_ID": "box"}
    found = {each.what: each for each in doctor.examine(environment)}
    if sys.platform == "linux":  # on a Mac MLX's device is a GPU
        assert not found["GPU"].good
        assert "make setup CUDA=1" in found["GPU"].sentence
