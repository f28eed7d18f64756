from __future__ import annotations

import mlx.core as mx
import pytest

from dynquant.errors import InvalidModelError
from dynquant.quant.mlx.loading import open_model
from dynquant.quant.mlx.written import WrittenFolder, replace_arrays
from tests.quant.mlx.factories import save_model

NORM = "model.norm.weight"


def test_replaced_arrays_leave_all_others_as_they_were(tmp_path):
    folder = save_model(tmp_path / "model")
    before = open_model(folder).stored_weights()
    mx.eval(before)
    replace_arrays(folder, {NORM: 2 * before[NORM]})
    after = open_model(folder).stored_weights()
    assert mx.array_equal(after.pop(NORM), 2 * before.pop(NORM)).item()
    assert all(mx.array_equal(after[name], before[name]).item() for name in before)


def test_an_array_of_another_size_is_no_replacement(tmp_path):
    folder = save_model(tmp_path / "model")
    with pytest.raises(ValueError, match=NORM):
        replace_arrays(folder, {NORM: mx.zeros(3)})


def test_a_folder_is_read_on_after_its_own_writer_has_changed_it(tmp_path):
    folder = save_model(tmp_path / "model")
    written, other = WrittenFolder(folder, {}), open_model(folder)
    written.replace({NORM: 3 * written.stored()[NORM]})
    assert written.weights()[NORM][0].item() == 3
    with pytest.raises(InvalidModelError, match="changed while they were read"):
        other.lazy_weights()
