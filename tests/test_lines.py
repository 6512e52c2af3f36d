"""Lines in, lines of JSON out: names of deltas, what a line may be, promptness, an end to what is held."""

import contextlib
import io
import itertools
import json
import os
import select
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from lnflax import lines, tuned
from lnflax.errors import InputError
from lnflax.tasks import ENTAILMENT, TASKS
from tests import tiny

DELTA = "seed0-lr0.005.safetensors"
WAIT = 120  # seconds, far more than anything takes


def test_a_delta_is_named_after_its_task_its_file_or_as_is_said(tmp_path):
    run = tmp_path / "w" / "rte" / "layernorms" / "deltas" / DELTA
    odd = tmp_path / "a=b.safetensors"
    odd.touch()
    found = lines.named([str(run), "mine.safetensors", f"other={run}", "x=y=z", str(odd)])
    assert found == {
        **{"rte": run, "mine": Path("mine.safetensors"), "other": run},
        **{"x": Path("y=z"), "a=b": odd},
    }
    assert lines.named([]) == {}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            ["a/x.safetensors", "b/x.safetensors"],
            "a/x.safetensors and b/x.safetensors are both called 'x'; give NAME=FILE",
        ),
        (["x=a", "x=b"], "a and b are both called 'x'; give NAME=FILE"),
        (["=a"], "'=a' is no delta; give FILE or NAME=FILE"),
        (["a="], "'a=' is no delta; give FILE or NAME=FILE"),
    ],
)
def test_names_that_do_not_tell_are_refused(given, reason):
    with pytest.raises(InputError, match=reason):
        lines.named(given)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tuned.open_base(str(tiny.write_checkpoint(tmp_path_factory.mktemp("model") / "model")))


def model(base, *, task="rte", labels=ENTAILMENT, shares=(1, 3), tagged=False):
    """One that says the same of everything, with probabilities in these shares."""
    own = tuned.load(base)
    head = {
        "classifier/kernel": np.zeros_like(own.params["classifier/kernel"]),
        "classifier/bias": np.log(np.float32(shares)),
    }
    return tuned.Model(base, own.shape, {**own.params, **head}, labels, tagged, TASKS[task], None)


@pytest.fixture(scope="module")
def rte(base):
    return model(base)


@pytest.fixture(scope="module")
def pos(base):
    return model(base, task="pos", labels=("A", "B"), tagged=True)


def answers(models, folder, data, form=None, name="in.txt"):
    """What is written for a file of these bytes."""
    (folder / name).write_bytes(data)
    lines.answer(models, str(folder / name), form, str(folder / "out"), 16)
    written = (folder / "out").read_bytes()
    assert written.endswith(b"\n") or not written
    return [json.loads(line) for line in written.splitlines()]


def brief(answer):
    return answer.get("label") or answer.get("tags") or answer["error"]


def test_a_line_of_text_is_a_pair_with_a_tab_between(rte, tmp_path):
    found = answers({"": rte}, tmp_path, b"the film\tis old\r\nthe film\n\n\xff\xfe\na\tb\tc\nthis\tthat")
    assert [own["line"] for own in found] == [1, 2, 3, 4, 5, 6]
    assert [brief(own) for own in found] == [
        *("not_entailment", "rte wants a pair of texts, not one text", "rte wants a pair of texts, not one text"),
        *("the line is not UTF-8 (invalid start byte at byte 1)", "rte wants a pair of texts, not 3 texts"),
        "not_entailment",
    ]
    assert found[0]["probabilities"] == pytest.approx({"entailment": 0.25, "not_entailment": 0.75}, abs=1e-6)


def test_a_line_of_text_is_words_where_the_model_tags_them(pos, tmp_path):
    found = answers({"": pos}, tmp_path, b"the  film\tis\n\n \nthis\n")
    assert [brief(own) for own in found] == [["B"] * 3, "there are no words", "there are no words", ["B"]]
    assert found[0]["tokens"] == ["the", "film", "is"]


def test_a_line_of_json_is_an_object_a_list_or_an_error(rte, pos, tmp_path):
    given = [
        {"delta": "rte", "text": "the film", "pair": "is öld", "id": "é"},
        {"delta": "pos", "tokens": ["the", "film"], "id": {"a": [1.5]}},
        {"delta": "pose", "tokens": ["the"], "id": 3},
    ]
    data = "\n".join([json.dumps(own, ensure_ascii=False) for own in given]).encode()
    data += (
        b'\n{"delta": "rte", "text": \nNaN\n"the"\n'
        + b"[" * 100_000
        + b'\n\xff\n{"delta": "pos", "tokens": ["a"], "id": "\\ud800"}\n{"delta": "pos", "tokens": ["a"], "id": 1e999}'
    )
    found = answers({"rte": rte, "pos": pos}, tmp_path, data, name="in.jsonl")
    assert [own.get("id") for own in found] == ["é", {"a": [1.5]}, 3, None, None, None, None, None, "\ud800", None]
    said = [brief(own) for own in found]
    assert said[:3] == [
        "not_entailment",
        ["B", "B"],
        "delta: 'pose' is not known; allowed are rte, pos; did you mean 'pos'?",
    ]
    assert said[3] == "the line is not JSON (Expecting value: line 1 column 26 (char 25))"
    assert said[4] == "the line is not JSON (NaN is not allowed)"
    assert said[5] == "there are 2 deltas: an example names its own as 'delta'"
    assert said[6].startswith("the line is not JSON (")
    assert said[7:9] == ["the line is not UTF-8 (invalid start byte at byte 1)", ["B"]]
    assert said[9] == "the line is not JSON (1e999 is not allowed)"
    assert '"é"' in (tmp_path / "out").read_text("utf-8")


def test_the_form_goes_by_the_ending_or_as_is_said(rte, tmp_path):
    pair = b'["the film", "is old"]\n'
    for form, name, label in (
        (None, "a.json", True),
        (None, "a.txt", False),
        ("jsonl", "a.txt", True),
        ("text", "a.jsonl", False),
    ):
        (found,) = answers({"": rte}, tmp_path, pair, form, name)
        assert ("label" in found) == label


def test_a_line_that_is_too_long_is_passed_over(rte, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST", 16)
    found = answers({"": rte}, tmp_path, b"a\tb\n" + b"a\t" + 13 * b"b" + b"\n" + b"a\t" + 50 * b"b" + b"\na\tb\n")
    long = "the line is longer than 16 bytes"
    assert [brief(own) for own in found] == ["not_entailment", "not_entailment", long, "not_entailment"]


def test_windows_of_a_file_end_at_so_many_lines_or_bytes(rte, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "WINDOW", 3)
    monkeypatch.setattr(lines, "HELD", 20)
    data = b"a\tb\n" * 7 + 3 * (b"a\t" + 15 * b"b" + b"\n")
    (tmp_path / "in").write_bytes(data)
    with (tmp_path / "in").open("rb") as file:
        sizes = [len(window) for window in lines._windows(file)]
    assert sizes == [3, 3, 2, 2]
    assert [own["line"] for own in answers({"": rte}, tmp_path, data)] == list(range(1, 11))


def test_nothing_gives_nothing(rte, tmp_path, capsys):
    assert answers({"": rte}, tmp_path, b"") == []
    assert capsys.readouterr().err == ""


def test_errors_are_counted_and_a_fresh_head_is_told_of(base, rte, tmp_path, capsys):
    answers({"": rte}, tmp_path, b"a\tb\nx\ny\n")
    assert capsys.readouterr().err == "warning: 2 of 3 lines have an error\n"
    fresh = tuned.Model(base, rte.shape, rte.params, ("A", "B"), False, None, None, fresh=True)
    answers({"": fresh}, tmp_path, b"a\n")
    assert (
        capsys.readouterr().err == f"warning: {base.name} has no head: a fresh one answers, which has learned nothing\n"
    )


def test_what_cannot_be_read_or_written_is_refused(rte, tmp_path):
    there, models = tmp_path / "there", {"": rte}
    there.write_bytes(b"a\tb\n")
    for source, output, reason in (
        (tmp_path / "no", "-", "--input: .*no cannot be read: No such file or directory"),
        (tmp_path, "-", "--input: .* cannot be read: Is a directory"),
        (there, tmp_path / "no" / "out", "--output: .*out cannot be written: No such file or directory"),
        (there, there, "--output: .*there is the input"),
    ):
        with pytest.raises(InputError, match=reason):
            lines.answer(models, str(source), None, str(output), 16)
    assert there.read_bytes() == b"a\tb\n"
    with pytest.raises(InputError, match="--format: text names no delta, and there are 2; give jsonl"):
        lines.answer({"a": rte, "b": rte}, str(there), None, "-", 16)
    with pytest.raises(InputError, match="max_length: 65"):
        lines.answer(models, str(there), None, str(tmp_path / "new"), 65)
    assert not (tmp_path / "new").exists()


@contextlib.contextmanager
def pipes(monkeypatch):
    """Standard input and output of this process as pipes: their other ends. pytest's own come between phases."""
    (read_in, write_in), (read_out, write_out) = os.pipe(), os.pipe()
    with (
        io.TextIOWrapper(os.fdopen(read_in, "rb")) as own_in,
        io.TextIOWrapper(os.fdopen(write_out, "wb")) as own_out,
        os.fdopen(write_in, "wb", buffering=0) as producer,
        os.fdopen(read_out, "rb", buffering=0) as consumer,
    ):
        monkeypatch.setattr(sys, "stdin", own_in)
        monkeypatch.setattr(sys, "stdout", own_out)
        yield producer, consumer


def in_thread(*arguments):
    thread = threading.Thread(target=lines.answer, args=arguments, daemon=True)
    thread.start()
    return thread


def receive(consumer):
    """An answer that must come though no line follows."""
    assert select.select([consumer], [], [], WAIT)[0], "no answer"
    return json.loads(consumer.readline())


def test_a_slow_producer_has_its_answer_before_its_next_line(rte, monkeypatch):
    with pipes(monkeypatch) as (producer, consumer):
        talk(rte, producer, consumer)


def talk(rte, producer, consumer):
    thread = in_thread({"": rte}, "-", None, "-", 16)
    for number in range(1, 4):
        producer.write(b"the film\tis old\n" if number != 2 else b"half")
        if number == 2:
            producer.write(b" a line\n")
        answer = receive(consumer)
        assert answer["line"] == number and ("label" in answer) == (number != 2)
    producer.write(b"this\tthat")  # its end tells that it is whole
    producer.close()
    assert receive(consumer)["line"] == 4
    thread.join(WAIT)
    assert not thread.is_alive()


def test_a_closed_output_ends_it_quietly(rte, monkeypatch, capsys):
    with pipes(monkeypatch) as (producer, consumer):
        consumer.close()
        producer.write(b"the film\tis old\n")
        producer.close()
        lines.answer({"": rte}, "-", None, "-", 16)
        sys.stdout.flush()
    assert capsys.readouterr().err == ""


def test_what_arrives_is_read_ahead_up_to_a_window():
    """However many lines come, a window that is answered and one that waits are held, and the line in hand."""
    read = []
    arrivals = lines.Arrivals(read.append(1) or b"line" for _ in iter(int, 1))
    taken = 0
    for window in itertools.islice(arrivals.windows(), 20):
        taken += len(window)
        assert 1 <= len(window) <= lines.WINDOW and len(read) <= taken + lines.WINDOW + 1


def test_what_arrives_comes_in_order_and_so_does_an_error():
    def source():
        yield from (b"%d" % number for number in range(10_000))
        raise OSError("the line is dead")

    got = []
    with pytest.raises(OSError, match="the line is dead"):
        for window in lines.Arrivals(source()).windows():
            got += window
    assert got == [b"%d" % number for number in range(10_000)]
