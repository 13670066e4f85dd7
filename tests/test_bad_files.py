"""Files that a hurried user has: cut to nothing, holding code, named for a folder; an output that is a link."""

import os
import pickle

import pytest
import torch
from model_folders import same_bits, save, weights_of

from knowlm.checkpoints import Checkpoint, load_pickle
from knowlm.checksums import read_checksums


class Code:
    def __reduce__(self):
        return os.system, ("true",)


def test_an_empty_pickle_is_refused_in_one_line(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pytorch_model.bin: cut short, damaged or no file of weights; nothing"):
        load_pickle(tmp_path / "pytorch_model.bin")


def test_what_a_pickle_would_call_is_named_and_nobody_told_to_allow_it(tmp_path):
    torch.save({"weight": Code()}, tmp_path / "zip.bin")
    with pytest.raises(ValueError, match=r"zip.bin: holds (posix|nt)\.system, which is no weight") as told:
        load_pickle(tmp_path / "zip.bin")
    assert "weights_only" not in str(told.value)


def test_an_odd_pickle_brings_no_warning_beside_the_error(tmp_path, recwarn):
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Code(), protocol=4))
    with pytest.raises(ValueError, match=r"plain.bin: "):
        load_pickle(tmp_path / "plain.bin")
    assert not list(recwarn)


def test_a_file_for_a_model_folder_is_named_as_such(tmp_path):
    folder = save(tmp_path / "model", {"w": torch.ones(2)})
    with pytest.raises(ValueError, match=r"model.safetensors: is a file; name the model's folder"):
        Checkpoint(folder / "model.safetensors")


def test_a_folder_by_the_name_of_weights_is_none(tmp_path):
    folder = save(tmp_path / "model", {"w": torch.ones(2)})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(ValueError, match="model: holds no weights"):
        Checkpoint(folder)


def test_an_output_that_is_a_link_to_another_disk_is_written_there(tmp_path, run_warm):
    raw = save(tmp_path / "raw", {"w": torch.ones(3)})
    save(tmp_path / "tuned", {"w": torch.full((3,), 5.0)})
    (tmp_path / "disk").mkdir()
    for link, target in (("empty", "disk"), ("dangling", "disk/new")):
        (tmp_path / link).symlink_to(target)
        flags = ["--path_raw", raw, "--path_tuned", tmp_path / "tuned", "--path_diff", tmp_path / link]
        result = run_warm("tools/weight_diff.py", "make_diff", *flags)
        assert result.returncode == 0, result.stderr
        assert (tmp_path / link).is_symlink() and same_bits(weights_of(tmp_path / target), {"w": torch.full((3,), 4.0)})


def test_a_list_that_windows_saved_is_read(tmp_path):
    (tmp_path / "MD5").write_bytes(b"\xef\xbb\xbfd41d8cd98f00b204e9800998ecf8427e  a.bin\r\n")
    assert list(read_checksums(tmp_path / "MD5")) == ["a.bin"]


def test_a_difference_is_not_taken_for_a_model(tmp_path, run_warm):
    raw = save(tmp_path / "raw", {"w": torch.ones(3)})
    make = ["tools/weight_diff.py", "make_diff", "--path_raw", raw]
    merge = ["tools/weight_diff.py", "merge", "--path_lora", raw]
    result = run_warm(*make, "--path_tuned", raw, "--path_diff", tmp_path / "diff", "--exact")
    assert result.returncode == 0, result.stderr
    for command in (
        [*make, "--path_tuned", tmp_path / "diff", "--path_diff", tmp_path / "out"],
        [*merge, "--path_zhixi", tmp_path / "diff", "--path_sfted", tmp_path / "out"],
        ["tools/export_gguf.py", "--model", tmp_path / "diff", "--output", tmp_path / "out.gguf", "--type", "f16"],
    ):
        result = run_warm(*command)
        assert result.returncode == 1 and "diff: not a model but the exact difference of two" in result.stderr
    assert not list(tmp_path.glob("out*"))
