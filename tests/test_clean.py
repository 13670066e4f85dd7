"""Cleaning: what goes and what stays, in every language; the same bytes by any way."""

import gzip
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import zstandard
from datatrove.data import Document
from datatrove.pipeline.filters import LambdaFilter

from knowlm.cleaning import DocumentFilter, Source, plan_tasks, read_part
from knowlm.quality import HarmfulWords

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLES = sorted((REPOSITORY / "pretrain" / "data").glob("*.jsonl"))
STORIES = [json.loads(line)["text"] for line in (SAMPLES[0].parent / "english_stories.jsonl").open(encoding="utf-8")]
ENGLISH = STORIES[0]
CHINESE = (
    "赵州桥在河北赵县，建于隋代，由工匠李春主持修建。桥身是一个很大的石拱，两肩又各有两个小拱，"
    "发大水时水可以从小拱流过，减轻对桥的冲击。这座桥已经有一千四百多年历史，至今仍然可以看到它原来的样子。"
)
CODE = json.loads((SAMPLES[0].parent / "code.jsonl").open(encoding="utf-8").readline())["text"]
CASINO = (
    "Welcome to the best online casino of the year. Play slot machines and roulette with free spins, "
    "or try our sports betting with a welcome bonus. The jackpot is yours, and you have to act now to win it."
)
GAMBLING = (
    "本站是最大的网上赌博平台，百家乐和老虎机天天开放，注册送彩金，体育投注返水最高，欢迎您的到来，祝您玩得愉快。"
)
POEM = "静夜思 李白\n床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"


@pytest.fixture
def clean(run_script, tmp_path):
    """``clean(texts or path, *flags)`` runs the script; its output folder and its result."""

    def run(texts, *flags, folder="out", **options):
        source = texts
        if isinstance(texts, list):
            source = tmp_path / "in.jsonl"
            write(source, texts)
        flags = [*flags, "--language", "auto"] if "--language" not in flags else flags
        arguments = ["--file_path", source, "--output_dir", tmp_path / folder, *flags]
        return tmp_path / folder, run_script("pretrain/clean.py", *arguments, **options)

    return run


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")


def rows(folder):
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.open(encoding="utf-8")]


def kept(folder):
    return [row["text"] for row in rows(folder / "documents")]


def reasons(folder):
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return {row["reason"]: row["documents"] for row in report["reasons"]}


def contents(folder):
    """Every file of a result but those of the work."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "work" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def many_texts(count, seed=0):
    """English and Chinese texts of random words, some of them equal or nearly equal to earlier ones."""
    random_ = random.Random(seed)
    english = "the and that with have river house garden letter morning window silver walked talked"
    chinese = "山水花鸟风云天地人心春夏秋冬东西南北大小高低来去读写走看听说的是在有了不也就都很"
    texts = []
    for number in range(count):
        if number % 10 == 8:
            texts.append(texts[random_.randrange(len(texts))])
        elif number % 10 == 9:
            texts.append(texts[random_.randrange(len(texts))] + " And one more sentence is here 再见。")
        elif number % 2:
            texts.append(
                " ".join(" ".join(random_.choices(english.split(), k=12)).capitalize() + "." for _ in range(6))
            )
        else:
            texts.append("".join("".join(random_.choices(chinese, k=20)) + "。" for _ in range(6)))
    return texts


def test_the_sample_sources_stay_but_for_one_question(clean):
    folder, result = clean(SAMPLES[0].parent / "*.jsonl")
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    assert reasons(folder) == {"gopher_quality.enough_stop_words": 1}  # "Why is the sky blue?", of 41 words
    assert len(result.stdout.splitlines()) == 1 and "59 of 60 documents" in result.stdout


REMOVED = {
    "empty": "  \n ! ",
    "language.de": "Das Wetter ist heute schön, und die Kinder spielen im Garten hinter dem Haus mit ihrem Hund.",
    "language.ja": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。薄暗い所で泣いていた。",
    "language.unsure": "price list: pizza margherita, pizza quattro stagioni, coke",
    "harmful.words": CASINO,
    "gopher_quality.short_doc": "A few words of the town.",
    "gopher_repetition.dup_line_frac": "Home is where the heart is.\n" * 5 + "And so we went to the house of the rest.",
    "gopher_repetition.top_2_gram": "The rent of the day, and with that buy shoes. " + "Buy shoes, and buy shoes. " * 9,
    "c4.curly_bracket": ENGLISH + " And then the template said {name} to everybody.",
    "c4.lorem_ipsum": ENGLISH + " Lorem ipsum dolor sit amet.",
    "c4.too_few_sentences": "It rained on the day of the fair in my town, and all the people that came late were wet.",
    "fineweb.line_punct_ratio": "\n".join(re.split(r"[,.]\s", ENGLISH.rstrip("."))),
    "chinese.short": "你好，世界。",
    "chinese.few_letters": "价格 12345678 99 数量 98765432 77 合计 1122334455 66 编号 00998877 55 库存 665544 44 单位",
    "chinese.symbols": "★全新★到货★的商品★现在★开始★接受预订★请大家★放心选择★我们的产品★",
    "chinese.contacts": "专业搬家服务，电话13812345678，微信号：abc12345，网址www.banjia.com，价格优惠，随叫随到。",
    "fineweb.list_ratio": "首页。\n新闻。\n体育。\n财经。\n娱乐。\n科技。\n汽车。\n房产。\n教育。\n健康。\n旅游。\n",
    "code.long_line": "def data():\n    values = [" + ", ".join(map(str, range(500))) + "]\n    return values\n",
    "code.long_lines": "\n".join(f"    values[{n}] = " + " + ".join(f"value_{m}" for m in range(20)) for n in range(9)),
    "code.few_letters_and_digits": "    {{{{((((----====>>>>\n" * 9 + "    return x;\n",
}


@pytest.fixture(scope="module")
def judge():
    """``judge(text)``: True, or False and why."""
    words = LambdaFilter(HarmfulWords(REPOSITORY / "pretrain" / "data" / "word_lists"))
    step = DocumentFilter("auto", set(), words, min_words=20, min_sentences=2)
    return lambda text: step.filter(Document(text, "1"))


@pytest.mark.parametrize("reason", REMOVED)
def test_each_reason_removes_its_documents(judge, reason):
    assert judge(REMOVED[reason]) == (False, reason)


@pytest.mark.parametrize(
    "text", [ENGLISH, CHINESE, CODE, ENGLISH + CHINESE, POEM, *STORIES, ENGLISH.replace(". ", ". \r\n")]
)
def test_decent_text_stays(judge, text):
    assert judge(text) is True


def test_harmful_chinese_is_found_inside_sentences(judge):
    assert judge(GAMBLING) == (False, "harmful.words")


def test_a_harmful_word_by_itself_is_no_reason(judge):
    assert judge(ENGLISH + " They walked past the casino. Then they were back at the casino again.") is True
    assert judge(CHINESE + "色情是另一个问题。") is True


def test_a_users_word_list_takes_the_place_of_ours(tmp_path):
    (tmp_path / "my.txt").write_text("# mine\nRed kite  # a bird\nbridge\nappl\n苹果\n", encoding="utf-8")
    words = HarmfulWords(tmp_path)
    assert words.find("A red kite over bridges, a BRIDGE and apples; 青苹果") == ({"red kite", "bridge", "苹果"}, 16)


def test_one_language_is_kept(clean):
    folder, _ = clean([ENGLISH, CHINESE, CODE], "--language", "chinese")
    assert kept(folder) == [CHINESE] and rows(folder / "documents")[0]["language"] == "chinese"


def test_the_first_of_equal_and_similar_documents_stays(clean):
    similar = [
        ENGLISH.replace("windy", "stormy"),
        CHINESE.replace("隋代", "隋朝"),
        CODE.replace("sorted", "ordered"),
    ]
    texts = [ENGLISH, CHINESE, CODE, ENGLISH + " ", *similar, STORIES[1]]
    folder, _ = clean(texts, "--tasks", 3)
    assert kept(folder) == [ENGLISH, CHINESE, CODE, STORIES[1]]
    name = next(iter(rows(folder / "documents")))["file"]
    assert [row["id"] for row in rows(folder / "removed" / "exact_duplicate")] == [f"{name}:4"]
    near = [(row["id"], row["duplicate_of"]) for row in rows(folder / "removed" / "near_duplicate")]
    assert near == [(f"{name}:5", f"{name}:1"), (f"{name}:6", f"{name}:2"), (f"{name}:7", f"{name}:3")]
    assert f"`{name}:5`, as `{name}:1`: Mina had" in (folder / "report.md").read_text(encoding="utf-8")


def test_counts_add_up_and_bad_lines_are_kept(clean, tmp_path):
    source = tmp_path / "in.jsonl"
    write(source, [ENGLISH, CASINO, ""])
    source.write_bytes(b'\xff\xfe\n{"text": \n\n' + source.read_bytes() + b'{"other": "x"}')
    folder, result = clean(source, "--input_format", "json")
    report = json.loads((folder / "report.json").read_text())
    assert report["in"]["documents"] == 6 and report["kept"] == {"documents": 1, "bytes": len(ENGLISH)}
    assert report["removed"] == {"documents": 2, "bytes": len(CASINO)} and report["rejected_lines"] == 3
    assert [(row["file"], row["line"]) for row in rows(folder / "rejected")] == [(str(source), n) for n in (1, 2, 7)]
    assert f"3 bad lines in {folder}/rejected" in result.stdout
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_skipped_steps_are_left_out(clean):
    texts = [ENGLISH, ENGLISH, REMOVED["language.de"], CASINO]
    skip = "language,gopher_quality,c4,fineweb,harmful,exact,near"
    assert kept(clean(texts, "--language", "english", "--skip", skip)[0]) == texts


@pytest.mark.slow
def test_nothing_left_is_told(clean):
    folder, result = clean([CASINO])
    assert result.returncode == 0, result.stderr
    assert "0 of 1 documents" in result.stdout and not kept(folder)


@pytest.mark.parametrize(
    "flags, code, message",
    [
        (["--skip", "c5"], 2, "--skip c5: no such step"),
        (["--tasks", 0], 2, "--tasks, --num_workers and --cpus_per_task must be at least 1"),
        (["--executor", "slurm"], 2, "--executor slurm needs --partition"),
        (["--word_lists", "nowhere"], 1, "nowhere: holds no .txt file with entries"),
    ],
)
def test_wrong_flags_stop_before_any_work(clean, flags, code, message):
    folder, result = clean([ENGLISH], *flags)
    assert (result.returncode, len(result.stderr.splitlines())) == (code, 1) and message in result.stderr
    assert not folder.exists()


def test_another_command_does_not_touch_a_result(clean):
    folder, _ = clean([ENGLISH, CHINESE])
    before = contents(folder)
    _, result = clean(folder.parent / "in.jsonl", "--language", "chinese")
    assert result.returncode == 1
    assert "was begun with another language; repeat that command or name another --output_dir" in result.stderr
    assert contents(folder) == before


def test_a_folder_of_other_things_is_not_taken(clean, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    _, result = clean([ENGLISH])
    assert result.returncode == 1 and "already exists" in result.stderr


@pytest.mark.slow
def test_every_kind_of_file_gives_the_same_documents(clean, tmp_path):
    import pyarrow
    from pyarrow import parquet

    texts = [ENGLISH, CHINESE, CODE, STORIES[1]]
    write(tmp_path / "a.jsonl", texts)
    content = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(content))
    parquet.write_table(pyarrow.Table.from_pylist([{"text": text} for text in texts]), tmp_path / "d.parquet")
    folder, result = clean(tmp_path / "[abcd].*", "--skip", "exact,near", "--tasks", 3)
    assert result.returncode == 0, result.stderr
    assert kept(folder) == 4 * texts
    assert [row["line"] for row in rows(folder / "documents")] == 4 * [1, 2, 3, 4]


@pytest.mark.parametrize("tasks", [1, 2, 3, 7, 50])
def test_tasks_cover_all_lines_once(tmp_path, tasks):
    sizes = [0, 5, 300, 1, 40]
    for number, size in enumerate(sizes):
        lines = [f"{number} {line} {'x' * (line * 7 % 50)}\n" for line in range(size)]
        (tmp_path / f"{number}.txt").write_text("".join(lines) + ("no end" if number == 2 else ""))
    sources = [Source(f"{n}.txt", str(tmp_path / f"{n}.txt"), False) for n in range(len(sizes))]
    parts = [part for task in plan_tasks(sources, tasks) for part in task]
    chunks = [(part, chunk) for part in parts for chunk in read_part(sources[part.source], part)]
    for number, source in enumerate(sources):
        data = [chunk.data for _, chunk in chunks if chunk.source == number]
        assert b"".join(data) == Path(source.path).read_bytes()
        counts = [piece.count(b"\n") for piece in data]
        first_lines = [chunk.first_line for _, chunk in chunks if chunk.source == number]
        assert first_lines == [1 + sum(counts[:place]) for place in range(len(counts))]


@pytest.mark.slow
def test_workers_change_nothing_and_tasks_only_the_files(clean, tmp_path):
    write(tmp_path / "many.jsonl", many_texts(600))
    alone, _ = clean(tmp_path / "many.jsonl", "--tasks", 4, folder="alone")
    several, _ = clean(tmp_path / "many.jsonl", "--tasks", 4, "--num_workers", 3, folder="several")
    assert contents(alone) == contents(several)
    assert {"exact_duplicate", "near_duplicate"} <= set(reasons(alone))
    other, _ = clean(tmp_path / "many.jsonl", "--tasks", 1, folder="other")
    assert rows(other / "documents") == rows(alone / "documents")
    for reason in reasons(alone):
        assert rows(other / "removed" / reason) == rows(alone / "removed" / reason)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["all", "worker"])
def test_a_killed_run_goes_on_to_the_same_bytes(clean, tmp_path, victim):
    write(tmp_path / "many.jsonl", many_texts(3000))
    flags = ["--tasks", 4, "--num_workers", 2]
    begin = time.monotonic()
    whole, result = clean(tmp_path / "many.jsonl", *flags, folder="whole")
    duration = time.monotonic() - begin
    assert result.returncode == 0, result.stderr
    command = [
        sys.executable,
        REPOSITORY / "pretrain/clean.py",
        "--file_path",
        tmp_path / "many.jsonl",
        "--language",
        "auto",
    ]
    command += ["--output_dir", tmp_path / "killed", *flags]
    told = 0
    for share in (0.3, 0.5, 0.7, 0.8):
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
        time.sleep(share * duration)
        if victim == "worker" and (workers := psutil.Process(process.pid).children()):
            workers[0].kill()
            _, errors = process.communicate(timeout=60)
            if process.returncode == 0:  # it had done its last task
                continue
            assert process.returncode == 1 and len(errors.splitlines()) == 1 and "was killed" in errors
            told += 1
        else:
            workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
            assert not psutil.wait_procs(workers, timeout=5)[1]
    assert told or victim == "all"
    folder, result = clean(tmp_path / "many.jsonl", *flags, folder="killed")
    assert result.returncode == 0, result.stderr
    assert contents(folder) == contents(whole)


SBATCH = f"""#!{sys.executable}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
job, count = os.getpid(), int(re.search(r"--array=0-(\\d+)", script)[1]) + 1
with open(os.environ["SBATCH_LOG"], "a") as log:
    print(job, *sys.argv[1:-1], re.search("--job-name=(.*)", script)[1], file=log)
for task in range(count):
    place = dict(SLURM_ARRAY_TASK_ID=str(task), SLURM_NODELIST="localhost", SLURM_JOB_ID=str(job), RUN_OFFSET="0")
    environment = {{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}} | place
    subprocess.run(["bash", "-c", script], env=environment, check=True, stdout=sys.stderr, cwd="/")
print("Submitted batch job", job)
"""


@pytest.mark.slow
def test_slurm_runs_the_same_stages_in_order(clean, tmp_path):
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, script in {"sbatch": SBATCH, "scontrol": "#!/bin/sh\necho localhost\n"}.items():
        (bin / name).write_text(script)
        (bin / name).chmod(stat.S_IRWXU)
    environment = {"PATH": f"{bin}:{os.environ['PATH']}", "SBATCH_LOG": str(tmp_path / "jobs")}
    write(tmp_path / "many.jsonl", many_texts(100))
    flags = ["--tasks", 2, "--executor", "slurm", "--partition", "cpu", "--sbatch_args", "account=me"]
    folder, result = clean(tmp_path / "many.jsonl", *flags, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "jobs are submitted" in result.stdout
    jobs = [line.split() for line in (tmp_path / "jobs").read_text().splitlines()]
    assert [job[-1] for job in jobs][:2] == ["knowlm_1_judge", "knowlm_2_hash"] and len(jobs) == 9
    assert all(f"--dependency=afterok:{before[0]}" in job for before, job in pairwise(jobs))
    script = (folder / "work" / "logs" / "1_judge" / "launch_script.slurm").read_text()
    assert "#SBATCH --account=me\n" in script and "#SBATCH --partition=cpu\n" in script
    (bin / "squeue").write_text("#!/bin/sh\necho 17\n")
    (bin / "squeue").chmod(stat.S_IRWXU)
    _, result = clean(tmp_path / "many.jsonl", *flags, env=environment)
    assert result.returncode == 1 and "jobs 17 are still in the queue" in result.stderr
    (bin / "squeue").unlink()
    _, result = clean(tmp_path / "many.jsonl", *flags, env=environment)
    assert "of 100 documents" in result.stdout  # all was done: nothing is submitted again
    assert contents(folder) == contents(clean(tmp_path / "many.jsonl", "--tasks", 2, folder="here")[0])


@pytest.mark.slow
def test_a_file_cut_short_is_told_in_a_line_with_the_log(clean, tmp_path):
    write(tmp_path / "a.jsonl", [ENGLISH] * 999)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes())[:-50])
    folder, result = clean(tmp_path / "a.jsonl.gz")
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1
    assert f"{tmp_path / 'a.jsonl.gz'}: can't be read to its end" in result.stderr
    assert f"(log: {folder}/work/logs/1_judge/logs/task_00000.log)" in result.stderr


@pytest.mark.slow
def test_ray_gives_the_same_bytes(clean, tmp_path):
    pytest.importorskip("ray")
    write(tmp_path / "many.jsonl", many_texts(100))
    flags = ["--tasks", 2, "--executor", "ray", "--mem_per_cpu_gb", 1]
    folder, result = clean(tmp_path / "many.jsonl", *flags, timeout=500)
    assert result.returncode == 0, result.stderr
    assert contents(folder) == contents(clean(tmp_path / "many.jsonl", "--tasks", 2, folder="here")[0])
