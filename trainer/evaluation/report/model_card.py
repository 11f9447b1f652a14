"""RUN/MODEL_CARD.md: a model card filled from the run; what the run cannot know is left as TODO.

The headings are those of Mitchell et al. 2019 (https://arxiv.org/abs/1810.03993), the front matter is that of Hugging
Face's model cards (https://huggingface.co/docs/hub/model-cards). The last line holds the SHA-256 of the text above it:
a card that does not match its hash was edited by hand, and is never overwritten.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from convoy.core.files import write_whole
from convoy.core.finding import Severity
from convoy.core.html.templates import shown
from convoy.core.text import counted, share
from convoy.trainer.config import earlier_virtual_replicas_text, loss_text
from convoy.trainer.evaluation.report.analysis import ClassRow
from convoy.trainer.evaluation.report.history import History
from convoy.trainer.evaluation.report.insights import AnyEvaluated, derive_insights
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.records import EvaluationRow

_EXTREMES = 5  # classes at each end
_RESIZED = {"squash": "resized", "crop": "center-cropped", "pad": "padded with gray"}  # config.resize
_LAST_LINE = "<!-- Written by convoy, SHA-256 of all above: {}. Once edited, this card is left as it is. -->\n"
_MARKS = re.compile(r"([\\`*_\[\]<>|~$&])")


def write(
    run: RunDirectory, history: History, results: Sequence[EvaluationRow], evaluated: AnyEvaluated | None
) -> bool:
    """Writes the card unless it was edited by hand; returns whether it was written.

    Raises:
      OSError: it cannot be read or written.
    """
    path = run.model_card
    if path.exists() and not _is_ours(path.read_text(encoding="utf-8", errors="replace")):
        return False
    text = _card(history, results, evaluated)
    write_whole(path, (text + _LAST_LINE.format(_digest(text))).encode("utf-8"))
    return True


def _is_ours(card: str) -> bool:
    text, _, last_line = card.rstrip("\n").rpartition("\n")
    return f"{last_line}\n" == _LAST_LINE.format(_digest(f"{text}\n"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _card(history: History, results: Sequence[EvaluationRow], evaluated: AnyEvaluated | None) -> str:
    config, dataset, result = history.config, history.dataset, history.result or {}
    insights = [
        finding
        for finding in derive_insights(history, evaluated)
        if finding.severity != Severity.OK and finding.section != "speed"
    ]
    worst, best = _extremes(history.class_names, evaluated)
    return _template().render(
        task=history.task,
        metadata=Markup(_metadata(history, results)),  # YAML escapes names itself
        name=history.name,
        num_classes=len(history.class_names),
        model={
            "architecture": config["model"]["name"],
            "parameters": evaluated and f"{evaluated.evaluation.parameters:,}",
            "input": "RGB images, {1} to {0} x {0} pixels".format(
                config.get("eval_image_size") or config["image_size"],
                _RESIZED[config.get("resize", "squash")],
            ),
            "output": f"a probability for each of {counted(len(history.class_names), 'class', 'classes')}"
            + (", any number of which an image may have" if history.task.multi_label else ""),
            "weights": evaluated and evaluated.evaluation.weights,
            "SHA-256 of the last weights": result.get("weights_sha256"),
        },
        data={
            "name": history.dataset_name,
            "training images": dataset.get("train_images"),
            "training split digest": dataset.get("train_digest"),
            "evaluated split": evaluated and f"{evaluated.evaluation.split}, digest {evaluated.evaluation.digest[:16]}",
            "classes": _listed(history.class_names),
        },
        procedure=_procedure(config, result),
        command=Markup(shown(history.command, 4000).replace("`", "'")),
        results=results,
        split=evaluated and evaluated.evaluation.split,
        images=evaluated and evaluated.evaluation.images,
        worst=worst,
        best=best,
        insights=insights,
        environment={name: _text(value) for name, value in history.environment.items() if name != "host"},
    )


def _template() -> jinja2.Template:
    def escaped(value: object) -> object:
        """Escapes a value of the template: names must not become headings, links, tables or HTML."""
        if isinstance(value, Markup) or not isinstance(value, str):
            return "TODO" if value is None else value
        return _MARKS.sub(r"\\\1", shown(value, 4000))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # it escapes HTML; `finalize` escapes Markdown
        finalize=escaped,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(share=share)
    environment.globals.update(counted=counted)
    return environment.get_template("model_card.md.j2")


def _metadata(history: History, results: Sequence[EvaluationRow]) -> str:
    """Returns the card's front matter."""
    name, task = shown(history.dataset_name), history.task
    score_type = task.score if task.multi_label else "accuracy"
    entries = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": name, "type": "imagefolder", "split": row.split},
            "metrics": [
                {"type": score_type, "value": round(row.quality[task.score], 6), "name": task.score_title},
                {"type": "f1", "value": round(row.quality["macro_f1"], 6), "name": "macro F1"},
            ],
        }
        for row in results
    ]
    metadata = {
        "library_name": "keras",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "convoy"],
        "metrics": [score_type, "f1"],
        "model-index": [{"name": shown(history.name), "results": entries}],
    }
    text = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"---\n# TODO license: as in https://huggingface.co/docs/hub/repositories-licenses\n{text}---\n"


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _listed(names: Sequence[str]) -> str:
    some = ", ".join(shown(name, 40) for name in names[:50])
    return f"{some} and {len(names) - 50:,} more" if len(names) > 50 else some


def _procedure(config: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, str]:
    optimizer, schedule = config["optimizer"], config["schedule"]
    rows = {
        "loss": loss_text(config),
        "optimizer": f"{optimizer['name']}, learning rate {optimizer['learning_rate']:g}, " + _weight_decay(optimizer),
        "schedule": f"{schedule['name']}, scaling {schedule['scaling']}",
        "global batch": f"{counted(config['batch_size'], 'image')} in "
        f"{counted(config['virtual_replicas'], 'virtual replica')}{earlier_virtual_replicas_text(config)}",
        "augmentation": config["augment"].get("ops") or "none",
        "mixing": _mixing(config.get("mix", {})),
        "class sampling": config.get("sampling", "natural"),
        "label smoothing": f"{config['label_smoothing']:g}",
        "weight averaging (EMA)": f"decay {config['ema']['decay']:g}",
        "precision": config["precision"],
        "seed": str(config["seed"]),
    }
    if result:
        hours = sum(result.get("seconds", {}).values()) / 3600
        rows |= {
            "length": f"{counted(result['step'], 'step')}, {result['epoch']:.2f} epochs, "
            f"{counted(result['images_seen'], 'image')}",
            "training time since the last start": f"{hours:.2f} h on {counted(result['replicas'], 'device')}",
        }
    return rows


def _weight_decay(optimizer: Mapping[str, Any]) -> str:
    per_run = optimizer.get("weight_decay_per_run")
    return f"weight decay per run {per_run:g}" if per_run else f"weight decay {optimizer['weight_decay']:g}"


def _mixing(mix: Mapping[str, float]) -> str:
    if not mix.get("mixup") and not mix.get("cutmix"):
        return "none"
    return ", ".join(f"{name} {value:g}" for name, value in mix.items())


def _extremes(class_names: Sequence[str], evaluated: AnyEvaluated | None) -> tuple[list[ClassRow], list[ClassRow]]:
    """Returns the classes with the lowest and with the highest F1."""
    if not evaluated:
        return [], []
    classes = evaluated.classes
    rows = classes.rows([shown(name, 60) for name in class_names], classes.worst_first())
    worst = rows[:_EXTREMES]
    return worst, rows[len(worst) :][::-1][:_EXTREMES]
