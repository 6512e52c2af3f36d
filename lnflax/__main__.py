"""What to do with deltas: look into one, apply it and take it back, export it, import one, predict with some.

python -m lnflax inspect runs/w/rte/layernorms/deltas/seed0-lr0.005.safetensors
python -m lnflax COMMAND --help
"""

from __future__ import annotations

import argparse
import io
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lnflax import MAX_LENGTH, process
from lnflax.errors import InputError, OneLineParser

DELTA = "runs/w/rte/layernorms/deltas/seed0-lr0.005.safetensors"
TO = ("hf", "peft")
FORMS = ("text", "jsonl")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _base(flags: argparse.Namespace, *paths: Path) -> Any:
    """The checkpoint that was given, or the one that the deltas' study names."""
    from lnflax import tuned

    name = flags.base or next(filter(None, map(tuned.base_of, paths)), None)
    if not name:
        raise InputError("--base is missing: a checkpoint's folder or hub id (no config.json of a study is beside it)")
    return tuned.open_base(name)


def _inspect(flags: argparse.Namespace) -> None:
    from lnflax.analysis import inspection

    _write(inspection.describe(flags.delta, flags.base, flags.top))


def _apply(flags: argparse.Namespace) -> None:
    from lnflax import merging

    _write(merging.apply(_base(flags, flags.delta), flags.delta, flags.folder))


def _revert(flags: argparse.Namespace) -> None:
    from lnflax import merging

    _write(merging.revert(flags.tuned, flags.folder))


def _export(flags: argparse.Namespace) -> None:
    from lnflax import adapters, hugging_face, tuned

    to = {"hf": hugging_face.export, "peft": adapters.export}[flags.to]
    _write(to(tuned.apply(_base(flags, flags.delta), flags.delta), flags.delta, flags.folder))


def _import(flags: argparse.Namespace) -> None:
    from lnflax import adapters

    labels = None if flags.labels is None else tuple(flags.labels.split(","))
    _write(adapters.read(_base(flags), flags.folder, flags.delta, task=flags.task, labels=labels))


def _predict(flags: argparse.Namespace) -> None:
    if trouble := process.set_up():
        sys.stderr.write(f"warning: {trouble}\n")
    from lnflax import glue_server, lines, tuned

    files = lines.named(flags.deltas)
    base = _base(flags, *files.values())
    models = {name: tuned.apply(base, path) for name, path in files.items()} or {"": tuned.load(base)}
    if flags.glue is not None:
        _write(glue_server.submit(models, flags.data, flags.glue, flags.max_length))
        return
    lines.answer(models, flags.input, flags.format, flags.output, flags.max_length)


def _average(flags: argparse.Namespace) -> None:
    if trouble := process.set_up():
        sys.stderr.write(f"warning: {trouble}\n")
    from lnflax.analysis import averaging

    _write(averaging.average(flags.cell, flags.out))


def _write(text: str) -> None:
    sys.stdout.write(text)


def _add_base(parser: argparse.ArgumentParser) -> None:
    text = "the checkpoint: a folder or a hub id (default: the one that the study of the delta names)"
    parser.add_argument("--base", metavar="MODEL", help=text)


def _add_delta(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("delta", type=Path, metavar="DELTA", help="the file of a run's delta")


def _add_folder(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help=what)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    _add_delta(parser)
    _add_base(parser)
    parser.add_argument("--top", type=_count, default=10, metavar="N", help="how many changes are named (default 10)")
    parser.set_defaults(run=_inspect)


def _add_apply(parser: argparse.ArgumentParser) -> None:
    _add_delta(parser)
    _add_folder(parser, "the new checkpoint folder")
    _add_base(parser)
    parser.set_defaults(run=_apply)


def _add_revert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tuned", type=Path, metavar="TUNED", help="the folder that apply made; no base is needed")
    _add_folder(parser, "the new checkpoint folder")
    parser.set_defaults(run=_revert)


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_delta(parser)
    _add_folder(parser, "the new folder")
    what = "hf: a whole model for from_pretrained; peft: an adapter of LNTuning, of settings that are whole LayerNorms"
    parser.add_argument("--to", choices=TO, required=True, help=what)
    _add_base(parser)
    parser.set_defaults(run=_export)


def _add_import(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser, "the adapter's folder")
    parser.add_argument("delta", type=Path, metavar="DELTA", help="the file that is written")
    parser.add_argument("--from", choices=("peft",), required=True, dest="source", help="whose adapter it is")
    parser.add_argument("--base", metavar="MODEL", required=True, help="the checkpoint: a folder or a hub id")
    parser.add_argument("--task", help="the task, where the adapter was not exported by lnflax")
    parser.add_argument("--labels", metavar="A,B,…", help="names of the outputs (default: the task's own)")
    parser.set_defaults(run=_import)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    what = "a delta, or NAME=FILE (default name: the task in a run folder, else the file's name without its ending);"
    what += " with several each JSON line names its own as `delta`. None: the base alone"
    parser.add_argument("deltas", nargs="*", metavar="DELTA", help=what)
    _add_base(parser)
    parser.add_argument("--input", default="-", metavar="FILE", help="what to read, - is standard input (the default)")
    what = "text: an example a line, a pair with a tab between; words with spaces. jsonl: an object a line, with text"
    what += " (and pair) or the task's own columns, or with tokens; id is given back (default: by FILE's ending)"
    parser.add_argument("--format", choices=FORMS, help=what)
    parser.add_argument("--output", default="-", metavar="FILE", help="where answers go, JSON lines (default: -)")
    what = f"tokens of an example, at most (default {MAX_LENGTH})"
    parser.add_argument("--max_length", type=_count, default=MAX_LENGTH, metavar="N", help=what)
    parser.add_argument("--glue", type=Path, metavar="DIR", help="write the GLUE server's submission there instead")
    what = "GLUE with its test sets: a folder in the hub's layout or a hub id (default nyu-mll/glue)"
    parser.add_argument("--data", default="nyu-mll/glue", metavar="PATH", help=what)
    parser.set_defaults(run=_predict)


def _add_average(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cell", type=Path, metavar="CELL", help="WORKDIR/TASK/SETTING, whose deltas are averaged")
    what = "where the averaged delta and its numbers go (default: WORKDIR/analysis)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=what)
    parser.set_defaults(run=_average)


# What a command adds, what it does, and examples of it.
COMMANDS = {
    "inspect": (_add_inspect, "what is in a delta, what it applies to, its largest changes", (DELTA,)),
    "apply": (_add_apply, "a delta on its checkpoint: a plain checkpoint folder", (f"{DELTA} tuned",)),
    "revert": (_add_revert, "the checkpoint that a folder of apply was made of, bit for bit", ("tuned original",)),
    "export": (
        _add_export,
        "a tuned model for PyTorch: transformers, or an adapter of PEFT",
        (f"{DELTA} --to=hf model", f"{DELTA} --to=peft adapter"),
    ),
    "import": (
        _add_import,
        "an adapter of PEFT's LNTuning as a delta",
        ("--from=peft adapter d.safetensors --base=M",),
    ),
    "predict": (
        _add_predict,
        "answers to texts, pairs or tagged words, as they come",
        (
            f"{DELTA} --input=pairs.tsv",
            "rte=RTE.safetensors cola=COLA.safetensors --base=M --input=lines.jsonl",
            "--base=M --input=texts.txt",
            "runs/w/*/layernorms/deltas/seed0-*.safetensors --glue=submission --data=GLUE",
        ),
    ),
    "average": (_add_average, "the mean of a cell's seeds as one model, evaluated", ("runs/w/rte/layernorms",)),
}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    plain = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(prog="lnflax", description=__doc__, allow_abbrev=False, formatter_class=plain)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (add, text, examples) in COMMANDS.items():
        shown = "\n".join(["examples:", *(f"  python -m lnflax {name} {example}" for example in examples)])
        add(
            commands.add_parser(
                name, help=text, description=text, epilog=shown, allow_abbrev=False, formatter_class=plain
            )
        )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; bad input is one line and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that knows no ± gets a question mark rather than a traceback.
        sys.stdout.reconfigure(errors="replace")
    try:
        flags = _parse(arguments)
        flags.run(flags)
    except (InputError, OSError) as error:
        sys.stderr.write(f"lnflax: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
