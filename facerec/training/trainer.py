"""The loop: batches → embeddings → loss → weights, with schedule, EMA, validation and checkpoints.

Every random number of step s is drawn from generators seeded by (seed, s, rank), and the learning rate is a function
of s, so the state of a training is its weights, its optimiser, its EMA and a few counters: a checkpoint written after
any step goes on to the same weights, bit for bit.

Under torchrun each rank embeds its share of a batch and computes the loss of the whole (distributed.py says what that
does to the gradient); ranks take the same steps, and fail and stop after the same one.

Axes: B batch, H W picture, E embedding_dim.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from facerec.data.augmentation import augment, to_input
from facerec.data.sampling import chunks, confusable_batches, epoch_batches
from facerec.data.store import Store
from facerec.errors import InputError
from facerec.evaluation.retrieval import validation_figures
from facerec.inference.embed import embed_pictures
from facerec.inference.provenance import Provenance
from facerec.losses.mining import confusable_people
from facerec.losses.objective import COLLAPSED_SPREAD, Objective, spread
from facerec.runtime.device import (
    autocast,
    exact_products,
    resolve_device,
    resolve_precision,
    to_device,
)
from facerec.runtime.signals import Stopped
from facerec.runtime.text import brief
from facerec.training import distributed
from facerec.training.batches import check_whole_batch, whole_batch
from facerec.training.checkpoint import Checkpoint
from facerec.training.memory import memory_told
from facerec.training.optim import Average, clone_state, learning_rate, parameter_groups
from facerec.training.settings import TrainingSettings

READ_EVERY = 50  # steps between two looks at the loss on CUDA, each of which waits for the device
RESIDENT_SHARE = 0.25  # of the free device memory that the training pictures may take
RESIDENT_CHUNK = 1024  # pictures copied to the device at a time


class TrainingFailed(InputError):
    """The training cannot go on: a loss that is no number, or embeddings that fell together."""


class Trainer:
    """A training that is iterated: `for row in trainer:` gives the metrics of an epoch, from 0 (before any step).

    Args:
        network: on any device; moved to `device`.
        objective: loss over training identities numbered 0 ... C - 1.
        store: pictures with their splits; only `train` and `val` are read.
        settings: TrainingSettings.
        save: called with (step, tensors, state) whenever a checkpoint is due.
        progress: show a bar.
        initial: provenance of the model that the weights are from, kept for who writes the new one.
        extra_pictures: (M, S, S, 3) uint8, training pictures of nobody, numbered after those of the store, for an
            objective that goes by picture.

    Attributes:
        average: the network whose weights are validated and kept.
        best: state_dict of the best epoch's average, by val/map_at_r.
        history: rows so far.
        precision: arithmetic of the network, fp32 or bf16; of a resumed training, that of its start.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        store: Store,
        settings: TrainingSettings,
        save: Callable[[int, dict[str, Tensor], dict[str, Any]], Any] = lambda *parts: None,
        progress: bool = True,
        initial: Provenance | None = None,
        extra_pictures: np.ndarray | None = None,
    ) -> None:
        self.device = resolve_device(settings.device)
        self.precision = distributed.from_first(
            lambda: resolve_precision(settings.precision, self.device)
        )
        self.settings, self.store, self.save, self.progress = settings, store, save, progress
        self.initial, self.extra_pictures = initial, extra_pictures
        self.train_indices, self.val_indices = store.indices("train"), store.indices("val")
        self.train_labels = np.unique(store.labels[self.train_indices], return_inverse=True)[1]
        if extra_pictures is not None:
            nobody = self.train_labels.max() + 1 + np.arange(len(extra_pictures))
            self.train_labels = np.concatenate([self.train_labels, nobody])
        # What the objective is told of each picture; batches are drawn by identity either way.
        self.targets = (
            np.arange(len(self.train_labels)) if objective.by_picture else self.train_labels
        )
        check_whole_batch(self.train_labels, settings)
        self.batch = whole_batch(settings)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 for what stays float32
            torch.backends.cudnn.deterministic = True  # a resumed run ends with the same bits
        self.resident = self.resident_pictures()
        self.network = network.to(self.device)
        self.objective = objective.to(self.device)
        self.average = Average(self.network, settings.ema)
        if settings.compile:
            self.network.compile()
        self.replica = distributed.replicate(self.network, to_input(self.load(np.arange(2))))
        self.optimizer = torch.optim.AdamW(
            parameter_groups([self.network, self.objective], settings.weight_decay),
            lr=settings.lr,
            fused=True,
        )
        self.generator = torch.Generator(self.device)
        self.steps_per_epoch = len(self.train_labels) // self.batch.batch_size
        self.step, self.best_value = 0, -1.0
        self.history: list[dict[str, float]] = []
        self.best = clone_state(self.average.network)
        self.sums: dict[str, float | Tensor] = {"loss": 0.0, "triplets": 0.0}
        self.last_loss = torch.zeros(())
        self.saved_at, self.saving_seconds = time.monotonic(), math.inf
        self.batches: np.ndarray | None = None  # of the epoch at hand
        self.stop: BaseException | None = (
            None  # raised after the step at hand, the checkpoint written
        )

    def __iter__(self) -> Iterator[dict[str, float]]:
        if not self.history:
            yield self.finish_epoch({"epoch": 0})
        with self.progress_bar() as bar:
            while len(self.history) <= self.settings.epochs:
                yield self.run_epoch(bar)

    def progress_bar(self) -> tqdm:
        """Pictures per second and time left, for the whole training; sparse where nobody watches."""
        size = self.batch.batch_size
        return tqdm(
            total=self.settings.epochs * self.steps_per_epoch * size,
            initial=self.step * size,
            unit="img",
            desc="train",
            mininterval=0.5 if sys.stderr.isatty() else 15,
            dynamic_ncols=True,
            disable=not self.progress,
        )

    def run_epoch(self, bar: tqdm) -> dict[str, float]:
        """The rest of the first epoch that has not been validated, then its validation."""
        epoch = len(self.history) - 1
        done = self.step - epoch * self.steps_per_epoch
        if self.batches is None:
            self.batches = self.plan(epoch)
        started, pictures = time.monotonic(), 0
        for positions in self.batches[done:]:
            with memory_told(self.settings, self.device):
                self.train_step(positions)
            pictures += len(positions)
            bar.update(len(positions))
            stop, due = self.agreed()
            if stop is not None or due:
                self.checkpoint()
            if stop is not None:
                raise stop
        sums = self.read_sums()
        seconds = time.monotonic() - started
        row = {
            "epoch": epoch + 1,
            "train/loss": sums["loss"] / self.steps_per_epoch,
            "train/lr": learning_rate(self.step - 1, self.steps_per_epoch, self.settings),
            "train/triplets": sums["triplets"] / self.steps_per_epoch,
            "train/images_per_second": pictures / seconds if seconds else 0.0,
        }
        self.batches = None
        row = self.finish_epoch(row)
        bar.set_postfix_str(
            f"loss {row['train/loss']:.4f}, val MAP@R {row.get('val/map_at_r', 0):.3f}"
        )
        return row

    def agreed(self) -> tuple[BaseException | None, bool]:
        """What to raise now, and whether a checkpoint is due: after the same step on all ranks, whichever was asked."""
        due = time.monotonic() - self.saved_at > self.settings.checkpoint_minutes * 60
        stop = (
            self.stop
        )  # read once: a signal from here on counts after the next step, on all ranks
        code, any_due = distributed.largest(getattr(stop, "code", 0), due)
        return stop or (Stopped(code) if code else None), bool(any_due)

    def plan(self, epoch: int) -> np.ndarray:
        """Batches of an epoch (steps, batch_size): by chance, or of people who are confused with each other now."""
        if not self.settings.confusable:
            return epoch_batches(self.train_labels, self.batch, self.settings.seed, epoch)
        return distributed.from_first(lambda: self.plan_confusable(epoch))

    def plan_confusable(self, epoch: int) -> np.ndarray:
        """The same, of people whom the averaged network confuses."""
        self.store.check_unaltered()
        embeddings = embed_pictures(
            self.average.network,
            self.store.images,
            self.train_indices,
            self.device,
            self.precision,
        )
        nearest = confusable_people(embeddings, self.train_labels)
        return confusable_batches(self.train_labels, nearest, self.batch, self.settings.seed, epoch)

    def train_step(self, positions: np.ndarray) -> None:
        """One optimiser step on the training pictures at `positions`."""
        self.seed_step()
        rate = learning_rate(self.step, self.steps_per_epoch, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.objective.at_epoch(self.step / self.steps_per_epoch)
        pictures = self.load(distributed.share(positions))
        labels, pairs = self.load_labels(positions)
        self.network.train()
        pictures = augment(to_input(pictures), self.settings, self.generator)
        with autocast(self.precision, self.device):
            embeddings = self.replica(pictures)
        with exact_products():
            loss, mined = self.objective(distributed.gather(embeddings), labels, pairs)
        self.last_loss = loss.detach()
        if self.device.type == "cpu" or self.step % READ_EVERY == 0:
            self.check_loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.settings.grad_clip > 0:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        self.step += 1
        self.average.update(self.network, self.step)
        self.sums["loss"] += self.last_loss.double()
        self.sums["triplets"] += mined.double()

    def resident_pictures(self) -> Tensor | None:
        """The training pictures on the device, where that is CUDA and they fit."""
        if self.device.type != "cuda":
            return None
        images, count = self.store.images, len(self.train_labels)
        size = count * images[0].nbytes
        if size > RESIDENT_SHARE * torch.cuda.mem_get_info(self.device)[0]:
            return None
        self.store.check_unaltered()
        resident = torch.empty(count, *images.shape[1:], dtype=torch.uint8, device=self.device)
        for part in chunks(count, RESIDENT_CHUNK):
            resident[part] = torch.from_numpy(self.training_pictures(np.arange(count)[part])).to(
                self.device
            )
        return resident

    def training_pictures(self, positions: np.ndarray) -> np.ndarray:
        """(B, S, S, 3) uint8: pictures of the store, then those of nobody."""
        real = len(self.train_indices)
        if self.extra_pictures is None:
            return self.store.images[self.train_indices[positions]]
        pictures = self.extra_pictures[np.maximum(positions - real, 0)]
        of_people = positions < real
        pictures[of_people] = self.store.images[self.train_indices[positions[of_people]]]
        return pictures

    def load(self, positions: np.ndarray) -> Tensor:
        """Training pictures (B, H, W, 3) uint8, on the device."""
        if self.resident is not None:
            return self.resident[to_device(positions, self.device)]
        self.store.check_unaltered()
        return to_device(self.training_pictures(positions), self.device)

    def load_labels(self, positions: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """The objective's labels (B,) and its pairs, on the device."""
        labels = self.targets[positions]
        pairs = self.objective.pairs(labels)
        return to_device(labels, self.device), None if pairs is None else to_device(
            pairs, self.device
        )

    def read_sums(self) -> dict[str, float]:
        """Sums of the epoch as numbers; waits for the device."""
        self.check_loss()
        sums = {name: float(value) for name, value in self.sums.items()}
        self.sums = {**sums}
        return sums

    def seed_step(self) -> None:
        """Seeds torch's generator and the augmentation's by (seed, step, rank), each in its own way."""
        sequence = np.random.SeedSequence([self.settings.seed, self.step, distributed.world().rank])
        of_torch, of_augmentation = (
            int(word >> 1) for word in sequence.generate_state(2, np.uint64)
        )
        torch.manual_seed(of_torch)
        self.generator.manual_seed(of_augmentation)

    def check_loss(self) -> None:
        """Raises TrainingFailed where the loss is no number: on a CPU before it reaches the weights, on CUDA soon."""
        if not torch.isfinite(self.last_loss):
            exact = ", or train anew with precision=fp32" if self.precision == "bf16" else ""
            raise TrainingFailed(
                f"the loss became {float(self.last_loss)} at step {self.step + 1} (epoch "
                f"{self.step // self.steps_per_epoch + 1}): lower lr (now {self.settings.lr}), "
                f"lengthen warmup_epochs{exact}"
            )

    def finish_epoch(self, row: dict[str, float]) -> dict[str, float]:
        """Validates, keeps the best weights, notes the row and writes a checkpoint."""
        row.update(distributed.from_first(self.validate))
        self.history.append(row)
        self.sums = {"loss": 0.0, "triplets": 0.0}
        value = row.get(
            "val/map_at_r", math.inf
        )  # nobody to validate with: the last weights are kept
        if value > self.best_value or value == math.inf:
            self.best_value = value
            self.best = clone_state(self.average.network)
        if self.checkpoint_due():
            self.checkpoint()
        return row

    def checkpoint_due(self) -> bool:
        """Whether the end of an epoch is saved: the first and the last, and others where that costs under 1 %."""
        if len(self.history) in (1, self.settings.epochs + 1):
            return True
        patience = min(100 * self.saving_seconds, 60 * self.settings.checkpoint_minutes)
        return time.monotonic() - self.saved_at > patience

    def best_row(self) -> dict[str, float]:
        """The epoch whose weights `best` holds."""
        if not len(self.val_indices):
            return self.history[-1] if self.history else {"epoch": 0}
        return max(self.history, key=lambda row: row["val/map_at_r"], default={"epoch": 0})

    def validate(self) -> dict[str, float]:
        """Figures of the averaged network on the validation people; none where there are none."""
        if not len(self.val_indices):
            return {}
        self.store.check_unaltered()
        embeddings = embed_pictures(
            self.average.network,
            self.store.images,
            self.val_indices,
            self.device,
            self.precision,
        )
        self.check_spread(embeddings)
        labels = self.store.labels[self.val_indices]
        figures = validation_figures(embeddings, labels)
        return {f"val/{name}": float(value) for name, value in figures.items() if value is not None}

    def check_spread(self, embeddings: Tensor) -> None:
        """Raises TrainingFailed where all people have fallen onto one point, as hard triplets from the start do."""
        if self.step and spread(embeddings) < COLLAPSED_SPREAD:
            raise TrainingFailed(
                f"the embeddings have collapsed onto one point after {self.step} steps (the loss sits at the margin): "
                "lower lr, lengthen warmup_epochs, or train with miner=all before a harder one"
            )

    def checkpoint(self) -> None:
        """Hands the whole state to `save`."""
        sums = self.read_sums()
        started = time.monotonic()
        tensors = {f"network/{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"objective/{k}": v for k, v in self.objective.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.average.network.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{slot}": value for slot, value in slots.items()}
        if (
            self.batches is not None and self.settings.confusable
        ):  # mined from weights that are no more
            tensors["plan/batches"] = torch.from_numpy(self.batches)
        state = {
            "best_value": self.best_value,
            "history": self.history,
            "sums": sums,
            "precision": self.precision,
            "threads": torch.get_num_threads(),
        }
        self.save(self.step, {k: v.clone() for k, v in tensors.items()}, state)
        self.saved_at = time.monotonic()
        self.saving_seconds = self.saved_at - started

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back to the state that `checkpoint` holds.

        Raises:
            InputError: if it is of another training, or damaged in a way that its checksum does not show.
        """
        try:
            self._restore(checkpoint)
        except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise InputError(
                f"the checkpoint of step {checkpoint.step} does not fit its settings: {brief(error)}"
            ) from error

    def _restore(self, checkpoint: Checkpoint) -> None:
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in checkpoint.tensors.items():
            part, key = name.split("/", 1)
            parts.setdefault(part, {})[key] = tensor
        self.network.load_state_dict(parts["network"])
        self.objective.load_state_dict(parts.get("objective", {}))
        self.average.network.load_state_dict(parts["average"])
        self.best = parts["best"]
        slots: dict[int, dict[str, Tensor]] = {}
        for key, tensor in parts.get("optimizer", {}).items():
            index, slot = key.split("/")
            slots.setdefault(int(index), {})[slot] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():
                if (
                    value.shape == parameter.shape
                ):  # a checkpoint is contiguous; a fused step walks raw memory
                    moments[name] = torch.empty_like(parameter).copy_(value)
        self.batches = parts["plan"]["batches"].numpy() if "plan" in parts else None
        self.step = checkpoint.step
        self.best_value = checkpoint.state["best_value"]
        self.precision = self.precision_of(checkpoint.state)
        self.history, self.sums = checkpoint.state["history"], checkpoint.state["sums"]

    def precision_of(self, state: Mapping[str, Any]) -> str:
        """The arithmetic that a training was begun in, though `auto` may mean another on the processor that goes on."""
        if "precision" not in state:  # written when `auto` was fp32 on every CPU
            meant_fp32 = self.settings.precision == "auto" and self.device.type == "cpu"
            return "fp32" if meant_fp32 else self.precision
        if state["precision"] not in ("fp32", "bf16"):
            raise ValueError(f"precision {state['precision']!r}")
        return state["precision"]
