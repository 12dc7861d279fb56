"""A trained model as a plain Hugging Face folder that loads without lit-hf."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError

from lit_hf import __version__
from lit_hf.errors import InputError, LitHFError, Problem, raise_problems
from lit_hf.export.merging import Loss, loss_of_precision
from lit_hf.export.merging import merge as merge_adapter
from lit_hf.export.model_card import Provenance, keep_edited_card, write_card
from lit_hf.export.verify import Answers, answers, tolerance_for, verify
from lit_hf.models.adapters import settle_ranks
from lit_hf.models.folder import MANIFEST, MODEL_CONFIG
from lit_hf.models.quantization import merge_problems, stored_quantization
from lit_hf.writing import flush, lock

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from lit_hf.task import Task

logger = logging.getLogger(__name__)

SLACK = 64 * 2**20
"""Bytes beside the weights: tokenizer, configs, and what the file system needs."""


_OLD = ".old"


def export(
    model: PreTrainedModel,
    task: Task,
    record: dict[str, Any],
    folder: str | Path,
    *,
    merge: bool = False,
    origin: Provenance | None = None,
) -> None:
    """Write weights (safetensors), config, tokenizer, card and `lit_hf.json`; reload, compare, and only then publish.

    A model without adapter, or with a merged one, becomes a folder for `AutoModelFor...` and `pipeline`. An adapter is
    written alone, for PEFT; the adapted model's config, with the label names, lies in `model_config/` beside it.

    Args:
        model: The plain `transformers` or PEFT model; it is not changed.
        task: The task, bound to its tokenizer.
        record: The task's `class_path` and `init_args` from the config.
        folder: Where to; an export that is there already is replaced, once the new one is complete.
        merge: Merge the adapter into a copy of its base model.
        origin: The run that the model comes from, for its card.

    Raises:
        InputError: If the folder holds something else, the disk is too small, or the adapter cannot be exported so.
        LitHFError: If the written model does not answer as the given one.
    """
    folder = Path(folder).resolve()
    raise_problems(check(model, merge))
    written = _to_write(model, task, merge)
    temporary = _make_sibling(folder, _size(written.model))
    held = _hold(temporary)
    trusted = type(_plain(model)).__module__.startswith("transformers_modules")
    try:
        _write(written.model, task, temporary)
        card = write_card(temporary, model, task, origin, written.lost)
        _write_manifest(task, record, temporary, written.lost, card, origin)
        keep_edited_card(folder, temporary)
        difference = verify(temporary, task.auto_class, task.tokenizer, written.answers, written.tolerance, trusted)
        flush(temporary)  # before it gets its name
        _publish(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise LitHFError(Problem(str(folder), f"the export could not be written: {error}.")) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(held)
    if written.lost:
        logger.info("%s", written.lost)
    logger.info("exported the %s to %s; reloaded, its outputs differ by %.1g at most", written.kind, folder, difference)


class _Written(NamedTuple):
    """A model as it is written, and what it must answer when it is reloaded.

    Attributes:
        kind: What it is, in a word or two.
        model: The model, its adapter merged if that is asked for.
        answers: What it answers.
        tolerance: How far the reloaded one may be from them.
        lost: What merging has changed, if it is more than rounding.
    """

    kind: str
    model: PreTrainedModel
    answers: Answers
    tolerance: float
    lost: Loss | None = None


def _to_write(model: PreTrainedModel, task: Task, merge: bool) -> _Written:
    expected = answers(model, task.tokenizer)
    if not (merge and isinstance(model, PeftModel)):
        if is_adapter := isinstance(model, PeftModel):
            settle_ranks(model)
        kind = "adapter" if is_adapter else "model"
        return _Written(kind, model, expected, tolerance_for(model.dtype, False))
    kind, merged = "merged model", merge_adapter(model)
    after = answers(merged, task.tokenizer)
    if lost := loss_of_precision(model, expected, after):  # what is written is compared with what was merged
        return _Written(kind, merged, after, tolerance_for(merged.dtype, False), lost)
    return _Written(kind, merged, expected, tolerance_for(merged.dtype, True))


def check(model: PreTrainedModel | PeftModel, merge: bool) -> list[Problem]:
    """Return what stands against an export; call it before training, so that it does not come up at its end."""
    if not isinstance(model, PeftModel):
        return []
    adapter = model.active_peft_config
    if merge and (adapter.is_prompt_learning or not _can_merge(model)):
        what = f"a {adapter.peft_type.value} adapter cannot be merged into its base model."
        return [Problem("merge", what, "Export the adapter alone: merge: false.")]
    if merge:
        return list(merge_problems(stored_quantization(_plain(model).config)))
    if not (adapter.base_model_name_or_path or _plain(model).name_or_path):
        what = "the adapter's base model was made from a config, so nobody could load it again."
        return [Problem("model.adapter", what, "Export both as one model: merge: true.")]
    return []


def _can_merge(model: PeftModel) -> bool:
    """Say whether PEFT merges such an adapter, from trying it on the meta device; with weights, that is found later."""
    if model.device.type != "meta":
        return True
    try:
        copy.deepcopy(model).merge_and_unload()
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        return "meta" in str(error).lower()  # what computes on weights cannot be tried without any
    return True


def _plain(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return cast("PreTrainedModel", model.get_base_model()) if isinstance(model, PeftModel) else model


def _size(model: PreTrainedModel) -> int:
    """Return the bytes of the weights that will be written."""
    tensors: dict[str, Tensor] = (
        get_peft_model_state_dict(model) if isinstance(model, PeftModel) else dict(model.named_parameters())
    )
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _make_sibling(folder: Path, size: int) -> Path:
    """Make the folder to write to, on the same disk as the place where it is to be."""
    _clear_leftovers(folder)
    if folder.exists() and not _replaceable(folder):
        what = "this is not an export of lit-hf, so it is not replaced."
        raise InputError(Problem(str(folder), what, "Give a new or empty folder."))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if free < size + SLACK:
            what = f"the export needs {(size + SLACK) / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free."
            raise InputError(Problem(str(folder), what, "Make room, or give a folder on another disk."))
        temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        temporary.mkdir()
    except OSError as error:
        what = f"the folder cannot be written to: {error.strerror}."
        raise InputError(Problem(str(folder), what, "Give one that you may write to.")) from error
    return temporary


def _clear_leftovers(folder: Path) -> None:
    """Remove what killed exports to a place left beside it; bring back the export that one had already set aside."""
    for old in folder.parent.glob(f".{folder.name}.*{_OLD}"):
        if not folder.exists() and _is_left(old.with_name(old.name.removesuffix(_OLD))):
            old.rename(folder)
    for path in folder.parent.glob(f".{folder.name}.*"):
        if re.fullmatch(rf"[0-9a-f]{{8}}({_OLD})?", path.name.removeprefix(f".{folder.name}.")) and _is_left(path):
            shutil.rmtree(path, ignore_errors=True)


def _hold(folder: Path) -> int:
    """Lock a folder until the handle that is returned is closed, or this process ends, however it does."""
    handle = os.open(folder, os.O_RDONLY)
    lock(handle)  # where there are no locks, `_is_left` is never true either
    return handle


def _is_left(folder: Path) -> bool:
    """Say whether nobody writes to a folder any more; false where that cannot be known."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    try:
        return lock(handle) is True
    finally:
        os.close(handle)


def _replaceable(folder: Path) -> bool:
    return folder.is_dir() and ((folder / MANIFEST).is_file() or not any(folder.iterdir()))


def _write(model: PreTrainedModel, task: Task, folder: Path) -> None:
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder), save_embedding_layers=False)  # trained ones are part of the adapter
        plain = _plain(model)
        config = copy.deepcopy(plain.config)
        config.architectures = [type(plain).__name__]
        config.save_pretrained(folder / MODEL_CONFIG)
    else:
        model.save_pretrained(str(folder))
    task.tokenizer.save_pretrained(folder)
    task.export_files(folder)


def _write_manifest(
    task: Task, record: dict[str, Any], folder: Path, lost: Loss | None, card: str, origin: Provenance | None
) -> None:
    manifest = {
        "lit_hf_version": __version__,
        "task": {"class_path": record["class_path"], "init_args": record.get("init_args") or {}},
        "state": task.state_dict(),
        "card": card,
    }
    if origin:
        manifest["checkpoint"] = origin.checkpoint
    if lost:
        manifest["merged"] = lost._asdict()
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    for weights in folder.glob("*.safetensors"):
        weights.chmod((folder / MANIFEST).stat().st_mode)  # safetensors makes files that only their owner can read


def _publish(temporary: Path, folder: Path) -> None:
    """Give the complete folder its name; the old one goes only after."""
    old = folder.with_name(f"{temporary.name}{_OLD}")
    if folder.exists():
        folder.rename(old)
    try:
        temporary.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
