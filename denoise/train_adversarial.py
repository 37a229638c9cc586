"""Adversarial training in two stages: reconstruction alone, then a critic alone, then critic and generator by turns.

A run is a folder as of `denoise.train`, with `stage-1.safetensors`, from which the second stage starts, and `mask.json`:
what the region mask holds of body and organs. `best` is the best of the stage that was last begun.
"""

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_recipes.errors import DataError, UsageError
from denoise.adversarial.losses import adversarial_error, alignment_error, critic_error, style_of
from denoise.adversarial.mask import region_mask
from denoise.adversarial.mask_report import mask_report, warnings_of
from denoise.adversarial.settings import AdversarialSettings
from denoise.data import Ladder
from denoise.feed import autocast, average_into, card_of, feed_of, rate_of
from denoise.methods import Samples
from denoise.model_file import load_model, save_model
from denoise.networks.critic import Critic
from denoise.networks.made import made_network
from denoise.networks.unet import placed
from denoise.networks.unipet import Mix, UniPET
from denoise.run_folder import Place, Progress, logs, open_run, save_state
from denoise.train_settings import TrainSettings
from petsim.cache.store import whole_or_nothing

GENERATOR_BETAS, CRITIC_BETAS = (0.9, 0.999), (0.9, 0.99)
"""Of AdamW, as published."""

MIXED_BLOCKS, MIXED_SHARE, MIXED_BETA = 2, 0.5, 0.1
"""MixStyle: before the first blocks, in a share of the steps, with weights of a beta distribution."""

MASKED_SUBJECTS = 3
"""Training subjects on which the mask's shares are reported."""

COLUMNS = ("stage", "error", "validation_error", "alignment", "critic", "fresh")


def train_adversarial(
    ladders: dict[str, list[Ladder]], run: Path, settings: TrainSettings, given: dict[str, Any], place: Place,
    progress: Progress, workers: int, files: Sequence[Path], pretrained: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """Train "unipet" or "cgan", or go on; arguments as of `denoise.train.train`.

    Parameters
    ----------
    ladders : dict
        Of the splits "train" and "val".
    run, settings
    given : dict
        What else the run depends on, JSON types.
    place : Place
    progress, workers
    files : sequence of Path
        Of the training subjects.
    pretrained : Path, optional

    Raises
    ------
    DataError, UsageError
    """
    own = settings.adversarial
    assert own is not None
    if place.world > 1:
        raise UsageError(f"{settings.method}: is trained by one process; start it without torchrun")
    measured = [ladder.name for some in ladders.values() for ladder in some if ladder.noise_free is None]
    if own.mask == "relative" and measured:
        raise UsageError(f"--mask relative: {measured[0]} is measured, its noise is not known; use --mask absolute")
    if pretrained is not None:
        given = {**given, "pretrained_sha256": _sha256(pretrained)}
    feed = feed_of(ladders, settings, place, workers, measure=False, clean=own.mask == "relative")
    card = card_of(settings, settings.regression, ladders["train"], given["data_sha256"])
    training = _Training(settings, own, place.device)
    first = settings.max_steps if pretrained is None else 0
    ends = (first, first + own.warm_steps, first + own.warm_steps + own.adversarial_steps)
    state = open_run(run, settings, given, place)
    done, stage, best, waited = 0, 0, math.inf, 0
    kept = run / "stage-1.safetensors"
    if state is None:
        kept.unlink(missing_ok=True)
        (run / "mask.json").unlink(missing_ok=True)
    else:
        training.restore(state)
        done, stage, best, waited = state["step"], state["stage"], state["best"], state["waited"]
    warnings = _report_mask(run, own, ladders["train"], files)
    validation = feed.validation()
    source = feed.samples(range(done, ends[-1]))
    fresh: list[float] = []
    with logs(run, done, place, COLUMNS) as log:
        while True:
            if stage == 0 and waited >= settings.patience and done < ends[0]:
                # Later steps have the samples that they would have had.
                done = ends[0]
                source = feed.samples(range(done, ends[-1]))
            if stage < 2 and done >= ends[stage]:
                if stage == 0 and own.adversarial_steps:
                    if not kept.exists():
                        _keep_first(run / "best.safetensors" if pretrained is None else pretrained, kept)
                    training.begin_second(kept)
                    best, waited = math.inf, 0
                stage += 1
                continue
            if done >= ends[-1]:
                break
            samples, part = next(source)
            fresh.append(part)
            if stage == 0:
                error = training.reconstruct(samples, rate_of(done, settings.max_steps))
            elif stage == 1:
                error = training.criticize(samples)
            else:
                error = training.both(samples)
            if not math.isfinite(error):
                raise DataError(f"training diverged at step {done}; lower --learning-rate or --adversarial-rate")
            done += 1
            if stage != 1:
                average_into(training.averaged, training.generator, settings.ema, done - (0 if stage == 0 else ends[1]))
            progress(done, error)
            at = done - (0 if stage == 0 else ends[stage - 1])
            if at % settings.validate_every and done != ends[stage]:
                continue
            # The generator rests while the critic is trained alone.
            watched = training.validation_error(validation) if stage != 1 else math.nan
            better = watched < best
            best, waited = (watched, 0) if better else (best, waited + 1)
            log(done, stage + 1, error, watched, training.alignment, training.critics_error, float(np.mean(fresh)))
            fresh.clear()
            for name in ("best", "last") if better else ("last",):
                save_model(run / f"{name}.safetensors", training.averaged, replace(card, steps=done))
            save_state(run, {**training.state(), "step": done, "stage": stage, "best": best, "waited": waited})
    return {
        "run": run.name,
        "steps": done,
        "validation_error": best,
        "parameters": sum(p.numel() for p in training.generator.parameters()),
        "warnings": warnings,
    }


class _Training:
    """Networks and optimizers, and one step of each stage, which gives the generator's error (of the critic alone, its own).

    Parameters
    ----------
    settings : TrainSettings
    own : AdversarialSettings
    device : torch.device
    """

    def __init__(self, settings: TrainSettings, own: AdversarialSettings, device: torch.device) -> None:
        self.settings, self.own, self.method, self.scaling = settings, own, settings.regression, settings.scaling
        torch.manual_seed(settings.seed)
        self.generator, self.averaged = (placed(made_network(settings.shape), device) for _ in range(2))
        self.averaged.load_state_dict(self.generator.state_dict())
        self.critic = Critic(settings.patch, 2 if own.name == "cgan" else 1, own.critic_width).to(device)
        self.cast = autocast(settings, device)
        self.alignment = self.critics_error = math.nan
        self._choose_optimizers(settings.learning_rate)

    def _choose_optimizers(self, rate: float) -> None:
        decay = self.settings.weight_decay
        self.optimizer = torch.optim.AdamW(self.generator.parameters(), rate, GENERATOR_BETAS, weight_decay=decay)
        self.critics_optimizer = torch.optim.AdamW(
            self.critic.parameters(), self.own.adversarial_rate, CRITIC_BETAS, weight_decay=decay
        )

    def begin_second(self, first: Path) -> None:
        """Take the weights of a model file, and new optimizers.

        Raises
        ------
        DataError, UsageError
            Not a model of this shape and scaling.
        """
        network, card = load_model(first)
        if (card.shape, card.scaling, card.method.name) != (self.settings.shape, self.scaling, self.method.name):
            raise UsageError(f"--pretrained {first.name}: is of another network or scaling; train with the same flags")
        for mine in (self.generator, self.averaged):
            mine.load_state_dict(network.state_dict())
        self._freeze()
        self._choose_optimizers(self.own.adversarial_rate)

    def _freeze(self) -> None:
        if self.own.base == "frozen" and isinstance(self.generator, UniPET):
            for parameter in self.generator.base_parameters():
                parameter.requires_grad_(False)

    def reconstruct(self, samples: Samples, rate: float) -> float:
        """One step of the first stage."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * rate
        estimate, _ = self._estimate(samples)
        error = self._reconstruction_error(estimate, samples)
        self._step(error)
        return error.item()

    def criticize(self, samples: Samples) -> float:
        """One step of the critic."""
        with torch.no_grad():
            made, _ = self._estimate(samples, mixing=False)
        return self._criticize(samples, made, self._mask(samples))

    def both(self, samples: Samples) -> float:
        """One step of the critic and one of the generator on the same samples."""
        mask = self._mask(samples)
        if self.own.has_critic:
            with torch.no_grad():
                made, _ = self._estimate(samples, mixing=False)
            self._criticize(samples, made, mask)
        estimate, features = self._estimate(samples)
        error = self._reconstruction_error(estimate, samples)
        if self.own.align != "off" and self.own.align_weight > 0:
            alignment = alignment_error(style := style_of(features), self._target_style(style, samples))
            self.alignment = alignment.item()
            error = error + self.own.align_weight * alignment
        if self.own.has_critic:
            self.critic.requires_grad_(False)
            error = error + self.own.adversarial_weight * adversarial_error(self._score(samples), estimate, mask)
        self._step(error)
        self.critic.requires_grad_(True)
        return error.item()

    def validation_error(self, validation: Sequence[Samples]) -> float:
        """Mean error of reconstruction of the averaged generator."""
        with torch.inference_mode(), self.cast:
            return float(np.mean([self.method.training_error(self.averaged, self.scaling, s).item() for s in validation]))

    def state(self) -> dict[str, Any]:
        """What `restore` takes."""
        return {
            "network": self.generator.state_dict(), "averaged": self.averaged.state_dict(),
            "critic": self.critic.state_dict(), "optimizer": self.optimizer.state_dict(),
            "critics_optimizer": self.critics_optimizer.state_dict(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.generator.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.critics_optimizer.load_state_dict(state["critics_optimizer"])
        if state["stage"] > 0:
            self._freeze()

    def _estimate(self, samples: Samples, mixing: bool = True) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Images in network numbers, and the features of a UniPET."""
        with self.cast:
            if isinstance(self.generator, UniPET):
                mixes = mixes_of(samples.seeds, samples.low.device) if mixing and self.own.style == "mixstyle" else ()
                estimate, features = self.generator.with_features(self.scaling.to_network(samples.low), mixes)
                return estimate.float(), features
            estimate = self.method.estimate(self.generator, self.scaling, samples.low, samples.condition, samples.sd)
            return estimate, []

    def _reconstruction_error(self, estimate: torch.Tensor, samples: Samples) -> torch.Tensor:
        return self.method.error(estimate, self.scaling.to_network(samples.target), samples.sd, samples.dose_sd)

    def _target_style(self, style: torch.Tensor, samples: Samples) -> torch.Tensor:
        if self.own.align == "mean":
            return style.mean(dim=0, keepdim=True).expand_as(style)
        assert isinstance(self.generator, UniPET)
        with torch.no_grad(), self.cast:
            return style_of(self.generator.with_features(self.scaling.to_network(samples.target))[1])

    def _mask(self, samples: Samples) -> torch.Tensor:
        # In SUV, before they are clipped and scaled.
        return region_mask(samples.target, self.own.mask, self.own.limit, samples.clean)

    def _score(self, samples: Samples) -> Callable[[torch.Tensor], torch.Tensor]:
        if self.own.name == "unipet":
            return self.critic
        low = self.scaling.to_network(samples.low)
        return lambda images: self.critic(torch.cat([images, low], dim=1))

    def _criticize(self, samples: Samples, made: torch.Tensor, mask: torch.Tensor) -> float:
        real = self.scaling.to_network(samples.target)
        share = torch.cat([torch.rand(1, generator=torch.Generator().manual_seed(seed ^ 2)) for seed in samples.seeds])
        self.critics_optimizer.zero_grad(set_to_none=True)
        error = critic_error(self._score(samples), mask * real, mask * made, share.to(real.device), self.own.penalty_weight)
        error.backward()
        self.critics_optimizer.step()
        self.critics_error = error.item()
        return self.critics_error

    def _step(self, error: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        error.backward()
        torch.nn.utils.clip_grad_norm_(self.generator.parameters(), self.settings.clip_norm)
        self.optimizer.step()


def mixes_of(seeds: Sequence[int], device: torch.device) -> list[Mix]:
    """How the first features of a batch are mixed: in half of the steps, with weights of beta(0.1, 0.1)."""
    rng = np.random.default_rng(seeds[0])
    if rng.random() >= MIXED_SHARE:
        return []
    found = []
    for _ in range(MIXED_BLOCKS):
        share = torch.from_numpy(rng.beta(MIXED_BETA, MIXED_BETA, len(seeds)).astype(np.float32))
        found.append(Mix(share.to(device), torch.from_numpy(rng.permutation(len(seeds))).to(device)))
    return found


def _keep_first(model: Path, kept: Path) -> None:
    with whole_or_nothing(kept) as temporary:
        shutil.copyfile(model, temporary)


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"--pretrained {path.name}: {error.strerror}; name a model file of denoise train") from None


def _report_mask(run: Path, own: AdversarialSettings, ladders: Sequence[Ladder], files: Sequence[Path]) -> list[str]:
    """Write what the mask holds, and tell what is wrong with it before the first step."""
    if own.mask == "off" or not own.has_critic:
        return []
    path = run / "mask.json"
    if not path.exists():
        lines = mask_report(ladders[:MASKED_SUBJECTS], files[:MASKED_SUBJECTS], own.mask, own.limit)
        with whole_or_nothing(path) as temporary:
            temporary.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    found = warnings_of(json.loads(path.read_text(encoding="utf-8")), own.mask, own.limit)
    for warning in found:
        print(f"warning: {warning}", file=sys.stderr)
    return found
