"""FaceEmbedder: pictures → embeddings → "the same person?". The object that an application loads.

    embedder = FaceEmbedder.load("models:/facerec@champion")
    embedder.same_person("one.jpg", "two.jpg")

MLflow is imported only where the source is a `runs:/` or `models:/` URI, and then only to fetch the files: no code
of the model is run. One object may be used by many threads.

Axes: N pictures, E embedding, G gallery.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facerec.data.align import CHOICES, FRAMES, face
from facerec.data.augmentation import to_input
from facerec.data.decoding import PictureError
from facerec.errors import InputError
from facerec.inference.calibration import Comparison, judge
from facerec.inference.gallery import Gallery, Match, gallery_files
from facerec.inference.inputs import Picture, as_list, is_picture, label, pixels
from facerec.inference.model_io import WEIGHTS, LoadedModel, ModelConfig, read_model
from facerec.inference.model_uri import model_folder
from facerec.model.network import activation_bytes
from facerec.runtime.paths import expanded
from facerec.runtime.text import brief

BATCH = 64
DECODERS = 2  # threads that read pictures for one call
MEMORY = 2**31  # bytes of activations at a time


class FaceEmbedder:
    """A trained network with everything around it. Made by `load`.

    Attributes:
        config: picture size, crop, alignment and network.
        calibration, provenance: as in the model folder.
        device: where the network is.
    """

    def __init__(self, model: LoadedModel, device: torch.device) -> None:
        self.config, self.calibration, self.provenance = model[1:]
        self.device = device
        # Within a caller's block of inference mode the weights could have no gradients.
        with torch.inference_mode(False):
            self._network = model.network.to(device)
        self._weights = self.config.sha256.get(WEIGHTS, "")
        needed = activation_bytes(self.config.network, self.config.image_size)
        self._at_once = max(1, MEMORY // needed)

    @property
    def network(self) -> torch.nn.Module:
        """The network, in eval mode."""
        return self._network

    @classmethod
    def load(cls, source: str | PathLike[str], device: str = "auto") -> FaceEmbedder:
        """Load a model.

        Args:
            source: a model folder, `runs:/RUN_ID/model`, `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or one of the
                shipped `pretrained` and `pretrained-lfw`. A folder of that name is written `./pretrained`.
            device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:1`; whatever it was trained on.

        Raises:
            InputError: nothing there, not a whole model, or no such device.
        """
        where = _device(device)
        with model_folder(source) as folder:
            return cls(read_model(folder), where)

    def embed(
        self,
        images: Picture | Sequence[Picture],
        *,
        flip: bool = False,
        align: str = "auto",
        choice: str = "auto",
        batch_size: int = BATCH,
    ) -> np.ndarray:
        """Embeddings of pictures.

        Args:
            images: one picture or several, of mixed kinds: a path, the bytes of a picture file, a PIL image, or a
                (H, W, 3) uint8 RGB array.
            flip: average with the mirrored picture's embedding; twice the time.
            align: `auto` treats pictures as in training; `none`: faces have been brought into place already; `find`:
                the face is found and the picture framed as the training pictures were, whatever it shows else.
            choice: which face, where several are found: `largest`, `central`, `only` to refuse, `auto` as in training.
            batch_size: pictures at a time.

        Returns:
            (N, E) float32, unit length.

        Raises:
            InputError: a picture cannot be used, and which; or an unknown `align` or `choice`.
        """
        embeddings, _, failed = self._embed(images, flip, align, choice, batch_size)
        if failed:
            raise next(iter(failed.values()))
        return embeddings

    def embed_usable(
        self, images: Sequence[Picture], *, batch_size: int = BATCH, **how: Any
    ) -> tuple[np.ndarray, list[int], dict[int, PictureError]]:
        """As `embed`, but pictures that cannot be used are left out.

        Returns:
            (K, E) float32; the K places in `images` that they belong to; place → error of the others.
        """
        how = {"flip": False, "align": "auto", "choice": "auto", **how}
        return self._embed(images, batch_size=batch_size, keep_going=True, **how)

    def embed_faces(self, faces: np.ndarray, *, flip: bool = False) -> np.ndarray:
        """Embeddings of faces that are cut out already.

        Args:
            faces: (N, image_size, image_size, 3) uint8 RGB.

        Returns:
            (N, E) float32, unit length.

        Raises:
            InputError: another shape or type, or the network's answer is no number, as of weights without measure.
        """
        side = self.config.image_size
        if faces.dtype != np.uint8 or faces.shape[1:] != (side, side, 3):
            raise InputError(
                f"faces {faces.shape} {faces.dtype}, where (N, {side}, {side}, 3) uint8 is expected"
            )
        starts = range(0, max(1, len(faces)), self._at_once)
        parts = [self._embed_batch(faces[i : i + self._at_once], flip) for i in starts]
        embeddings = torch.cat(parts)
        if not torch.isfinite(embeddings).all():
            raise InputError("the model's embeddings are no numbers: its weights are damaged")
        return embeddings.numpy()

    def _embed_batch(self, faces: np.ndarray, flip: bool) -> torch.Tensor:
        """(n, E) float32 on the CPU, of faces that memory holds at once."""
        # The caller may be within a block of autocast, which thresholds are not made for.
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            batch = to_input(torch.from_numpy(np.require(faces, requirements="W")).to(self.device))
            embeddings = self._network(batch)
            if flip:
                both = embeddings + self._network(batch.flip(3))
                embeddings = torch.nn.functional.normalize(both, dim=-1)
            return embeddings.cpu()

    def faces(
        self,
        images: Sequence[Picture],
        *,
        side: int | None = None,
        align: str = "auto",
        choice: str = "auto",
    ) -> np.ndarray:
        """What the network sees of pictures.

        Args:
            side: of the squares in pixels, instead of the network's.
            align, choice: as in `embed`.

        Returns:
            (N, side, side, 3) uint8 RGB.

        Raises:
            InputError: as of `embed`.
        """
        settings, frame = self.framing(align, choice)
        settings = settings.model_copy(update={"image_size": side or settings.image_size})
        faces = [_face(picture, i, settings, frame) for i, picture in enumerate(images)]
        for found in faces:
            if isinstance(found, PictureError):
                raise found
        shape = (len(faces), settings.image_size, settings.image_size, 3)
        return np.array(faces, np.uint8).reshape(shape)

    def similarity(self, a: Picture, b: Picture, **how: Any) -> float:
        """Cosine similarity of two pictures, in [-1, 1]; `how` as in `embed`."""
        return cosine(*self.embed([a, b], **how))

    def same_person(self, a: Picture, b: Picture, far: float = 1e-3, **how: Any) -> bool:
        """Whether two pictures show one person, at the false accept rate `far`; `how` as in `embed`.

        Raises:
            InputError: a picture cannot be used, or the model has no threshold for `far`.
        """
        return self.compare(a, b, far, **how).same_person

    def compare(self, a: Picture, b: Picture, far: float = 1e-3, **how: Any) -> Comparison:
        """Similarity, probability and verdict of two pictures.

        Args:
            far: accepted share of pairs of two people, in (0, 1).
            how: as in `embed`.

        Raises:
            InputError: a picture cannot be used, or the model has no threshold for `far`.
        """
        self.judge(0.0, far)  # an impossible FAR is told before any work
        return self.judge(self.similarity(a, b, **how), far)

    def judge(self, similarity: float, far: float = 1e-3) -> Comparison:
        """The verdict on a similarity, see `compare`."""
        return judge(self.calibration, similarity, far)

    def gallery(
        self, people: str | PathLike[str] | Mapping[str, Picture | Sequence[Picture]], **how: Any
    ) -> Gallery:
        """Embed known people once, for many calls of `identify`.

        Args:
            people: name → picture or pictures; or a folder, with a folder per person or a picture per person.
            how: as in `embed`.

        Raises:
            InputError: no usable picture; of a mapping, any that cannot be used.
        """
        if isinstance(people, Mapping):
            named = [
                (str(n), p) for n, ps in people.items() for p in ([ps] if is_picture(ps) else ps)
            ]
            if not named:
                raise InputError("the gallery is empty")
            labels = tuple(label(p, i) for i, (_, p) in enumerate(named))
            embeddings = self.embed([p for _, p in named], **how)
            return Gallery(self._weights, tuple(n for n, _ in named), labels, embeddings)
        return self._gallery_folder(expanded(people), **how)

    def identify(
        self,
        probe: Picture,
        gallery: Gallery | str | PathLike[str] | Mapping[str, Picture | Sequence[Picture]],
        top: int = 5,
        **how: Any,
    ) -> list[Match]:
        """The people of a gallery who look most like the probe, best first, at most `top`.

        Args:
            gallery: what `gallery` returned, or takes.
            how: as in `embed`.

        Raises:
            InputError: a picture cannot be used, there are several probes, or another model has embedded the gallery.
        """
        if not is_picture(probe):
            raise InputError(f"a {type(probe).__name__}, where one probe is expected")
        known = gallery if isinstance(gallery, Gallery) else self.gallery(gallery, **how)
        if known.model != self._weights:
            raise InputError("the gallery was embedded by another model: make it with this one")
        return known.search(self.embed(probe, **how)[0], top)

    def _gallery_folder(self, folder: Path, **how: Any) -> Gallery:
        """As many pictures of the folder as can be used; the others are named in `skipped`."""
        files = gallery_files(folder)
        named = files.people
        embeddings, kept, failed = self.embed_usable([path for _, path in named], **how)
        if not kept:
            lost = f"; the first of {len(failed)}: {next(iter(failed.values()))}" if failed else ""
            raise InputError(f"gallery {folder}: no usable picture in it{lost}")
        names, paths = zip(*(named[i] for i in kept), strict=True)
        skipped = tuple((str(named[i][1]), str(error)) for i, error in failed.items())
        return Gallery(
            self._weights, names, tuple(map(str, paths)), embeddings, skipped, files.notes
        )

    def _embed(
        self,
        images: Picture | Sequence[Picture],
        flip: bool,
        align: str,
        choice: str,
        batch_size: int,
        keep_going: bool = False,
    ) -> tuple[np.ndarray, list[int], dict[int, PictureError]]:
        """See `embed_usable`; without `keep_going` it ends at the first bad picture."""
        pictures = as_list(images)
        settings, frame = self.framing(align, choice)
        cut = partial(_face, settings=settings, frame=frame)
        rows = [np.empty((0, self.config.network.embedding_dim), np.float32)]
        kept: list[int] = []
        failed: dict[int, PictureError] = {}
        with ThreadPoolExecutor(min(DECODERS, max(1, len(pictures)))) as pool:
            for start in range(0, len(pictures), max(1, batch_size)):
                part = pictures[start : start + max(1, batch_size)]
                faces = dict(enumerate(pool.map(cut, part, count(start)), start))
                failed |= {i: f for i, f in faces.items() if isinstance(f, PictureError)}
                if failed and not keep_going:
                    break
                usable = {i: f for i, f in faces.items() if not isinstance(f, PictureError)}
                kept += usable
                if usable:
                    rows.append(self.embed_faces(np.stack([*usable.values()]), flip=flip))
        return np.concatenate(rows), kept, failed

    def framing(self, align: str, choice: str) -> tuple[ModelConfig, str | None]:
        """How `align.face` cuts out a face: as in training, but for what is asked otherwise.

        Args:
            align, choice: as in `embed`.

        Returns:
            The settings, and the frame to bring the face into, of `align.FRAMES`, or None.

        Raises:
            InputError: an unknown `align` or `choice`, or one that does not fit the model.
        """
        trained = self.config.align
        if align not in ("auto", "none", "find", trained):
            raise InputError(
                f"align={brief(align)}: auto, none or find is expected; it was trained with {trained}"
            )
        if choice not in ("auto", *CHOICES):
            raise InputError(
                f"choice={brief(choice)}: one of auto, {', '.join(CHOICES)} is expected"
            )
        if choice != "auto" and (align == "none" or (align != "find" and trained == "none")):
            raise InputError(f"choice={choice}: without alignment no face is looked for")
        asked = {"align": trained if align == "find" else align, "face_choice": choice}
        changes = {name: value for name, value in asked.items() if value != "auto"}
        frame = self._frame() if align == "find" and trained == "none" else None
        return self.config.model_copy(update=changes), frame

    def _frame(self) -> str:
        """How the training pictures were framed."""
        name = self.provenance.data.name
        if name not in FRAMES:
            raise InputError(
                f"align=find: how the pictures of {name or 'the training'} were framed is not known; use auto"
            )
        return name


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Similarity of two unit vectors, in [-1, 1]."""
    return float(np.clip(a @ b, -1, 1))


def _face(
    picture: Picture, index: int, settings: ModelConfig, frame: str | None
) -> np.ndarray | PictureError:
    """(S, S, 3) uint8, what the network sees of a picture; or why it sees nothing."""
    try:
        return face(pixels(picture), settings, frame)
    except PictureError as error:
        return PictureError(f"{label(picture, index)}: {error}")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device={brief(name)}: auto, cpu, cuda or cuda:N is expected")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device={name}: {torch.cuda.device_count()} CUDA devices are here; use auto or cpu"
        )
    return device
