"""A program that understands `train` and `evaluate` and only writes what these leave behind, for tests: a process or
the function `main`.

It fails where RUN's folder holds a file `fail-COMMAND`, and adds a line to `commands` there.
"""

import ast
import json
import sys
from pathlib import Path

from convoy.trainer import config as configs


def main(command, *words):
    flags = dict(word.removeprefix("--").partition("=")[::2] for word in words)
    run, *others = map(Path, flags["workdir"].split(","))
    with open(run.parent / "commands", "a") as file:
        file.write(" ".join([command, run.name, *([flags["split"]] if "split" in flags else [])]) + "\n")
    if (run.parent / f"fail-{command}").exists():
        sys.exit("convoy: it was told to fail")
    if command == "train":
        config = configs.load_recipe(flags.pop("config"))
        fields = {name.removeprefix("config."): value for name, value in flags.items() if name.startswith("config.")}
        known = dict(configs.fields(config))
        values = {n: text if isinstance(known[n], str) else ast.literal_eval(text) for n, text in fields.items()}
        config.update_from_flattened_dict(values)
        config = configs.to_json(configs.with_recorded_choices(config, {"virtual_replicas": 1, "precision": "float32"}))
        run.mkdir()
        steps = config["steps"] or 100
        events = [
            {"event": "start", "time": 1000.0, "step": 0},
            {"event": "first_step", "time": 1010.0, "step": 1},
            {"event": "checkpoint", "time": 1010.0 + 0.5 * (steps // 2 - 1), "step": steps // 2},
            {"event": "done", "time": 1010.0 + 0.5 * (steps - 1), "step": steps},
        ]
        (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        (run / "config.json").write_text(json.dumps(config))
        result = {"step": steps, "images_per_second": 128.0, "best": {"step": steps // 2, "top1": 0.5}}
        (run / "result.json").write_text(json.dumps(result))
    else:
        seed = json.loads((run / "config.json").read_text())["seed"]
        top1 = {"train": 0.9, "validation": 0.7, "test": 0.6 + 0.1 * seed}[flags["split"]]
        evaluation = {"parameters": 1234, "images": 100, "quality": {"top1": top1, "ece": 0.05}}
        evaluation["quality"]["top1"] += 0.05 * len(others) + 0.02 * ("flip_tta" in flags)
        written = run / f"evaluation_{flags['split']}.json"
        written.unlink(missing_ok=True)
        written.write_text(json.dumps(evaluation))
        if "json" in flags:
            Path(flags["json"]).write_text(json.dumps(evaluation["quality"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
