"""How `--help` is laid out: the panels of commands and of options, and the examples at its end."""

USE, TRAIN, CHECK = "Use", "Train", "Check"  # of commands

DATA, MODEL, TRAINING, FROZEN = "Data", "Model", "Training", "Frozen encoder"  # of options
INPUT, OUTPUT, SPEED, LOG, ALSO = "Input", "Output", "Speed and memory", "Log and checkpoints", "What else is checked"

# Of each command, as a user types it. A line has at most 78 characters, so that none is wrapped on a terminal of 80.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "embed": (
        'fastbert embed "A cat sat." "A dog ran." --model my-encoder',
        "fastbert embed --model my-encoder --file texts.csv --field body --out v.npy",
    ),
    "classify": (
        'fastbert classify --model my-classifier "What a film!"',
        "fastbert classify --model my-classifier --file texts.txt --out labels.jsonl",
    ),
    "tag": (
        'fastbert tag --model my-tagger "Ada Lovelace lived in London."',
        "fastbert tag --model my-tagger --file words.conll --out tags.jsonl",
    ),
    "answer": (
        'fastbert answer --model my-reader "Who sat?" "The cat sat on the mat."',
        "fastbert answer --model my-reader --file squad.json --top 3 --out a.jsonl",
    ),
    "rank": (
        'fastbert rank "Who sat?" "The cat sat." "Rain fell." --model my-ranker',
        'fastbert rank "Who sat?" --model my-ranker --file passages.txt --top 10',
    ),
    "fill-mask": (
        'fastbert fill-mask "The cat sat on the [MASK]."',
        "fastbert fill-mask --model my-bert --file texts.txt --out words.jsonl",
    ),
    "next": (
        'fastbert next "The sun came out." "We went for a walk."',
        "fastbert next --file pairs.csv --field first --field second --out n.jsonl",
    ),
    "run": ("fastbert run train.py --epochs 3", "fastbert run --padding zeros -m my_package.train"),
    "export": (
        "fastbert export my-classifier --to onnx --out classifier.onnx",
        "fastbert export my-classifier --to torch-export --out classifier.pt2",
    ),
    "tune": ("fastbert tune my-bert", "fastbert tune --config bert-large --dtype fp16 --rows 128,512,4096"),
    "tokenizer": ("fastbert tokenizer books.txt --vocab-size 8000 --out tok",),
    "prepare": ("fastbert prepare books.txt --tokenizer tok --seq-len 128 --out data",),
    "masks": ("fastbert masks data --whole-words",),
    "pretrain": (
        "fastbert pretrain --data data --steps 10000 --config bert-small --out run",
        "fastbert pretrain --data d128 --steps 9000 --data d512 --steps 1000 --out r",
        "fastbert pretrain --data data --steps 10000 --out run --resume",
    ),
    "replay": ("fastbert replay run/stopped-at-step-120-process-0/black-box.json",),
    "finetune": (
        "fastbert finetune classify --model my-bert --train t.csv --eval e.csv --out m",
        "fastbert finetune tag --model my-bert --train t.conll --eval e.conll --out m",
        "fastbert finetune qa --model my-bert --train t.json --eval e.json --out m",
    ),
    "demo": ("fastbert demo", "fastbert demo my-bert --text texts.txt"),
    "explain": ("fastbert explain my-bert",),
    "verify": (
        "fastbert verify my-bert",
        "fastbert verify my-bert --dtype float16 --text texts.txt --json report.json",
        "fastbert verify my-bert --dtype fp8 --text texts.txt",
    ),
    "evaluate": (
        "fastbert evaluate classify --model my-classifier --file test.csv",
        "fastbert evaluate tag --model my-tagger --file test.conll --json scores.json",
    ),
}


def epilog(command: str) -> str | None:
    """The end of a command's help: its examples, a line each, as typer reads lines."""
    lines = EXAMPLES.get(command, ())
    return "\n\n".join(["Examples:" if len(lines) > 1 else "Example:", *lines]) if lines else None
