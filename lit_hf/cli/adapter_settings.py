"""Settings of PEFT's configs that are not as PEFT wants them once jsonargparse has read them."""

from __future__ import annotations

import logging

from jsonargparse import Namespace

log = logging.getLogger(__name__)

UNKNOWN_STEPS = 2**31


def complete(adapter: Namespace | None) -> None:
    """Complete the parsed `model.adapter`, before the config object is made of it.

    AdaLoRA's `total_step` follows the trainer, whatever is given. An empty `loftq_config` stays empty: jsonargparse
    makes the default one of it, by which PEFT overlooks the settings of every other start.
    """
    settings = getattr(adapter, "init_args", None) or Namespace()
    if (steps := settings.get("total_step", UNKNOWN_STEPS)) != UNKNOWN_STEPS:
        settings.total_step = UNKNOWN_STEPS
        if steps is not None:
            log.info("model.adapter.init_args.total_step: %s is not used; it follows the run's steps", steps)
    if settings.get("init_lora_weights") != "loftq" and settings.get("loftq_config") is not None:
        del settings["loftq_config"]
