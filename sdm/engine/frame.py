"""A rectangle of pixels of which any can be encoded: what varies slowly is interpolated, the rest computed there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sdm.engine.encode import embed_batches, one_thread
from sdm.engine.inputs import Read
from sdm.engine.lattice import Blend
from sdm.engine.places import Places, Plan
from sdm.engine.trust import measure
from sdm.models.protocol import SlopedEncoders

if TYPE_CHECKING:
    import torch


class Sum(NamedTuple):
    """Some places with the sum of their embeddings."""

    places: np.ndarray
    """(N,) flat indices into the rectangle."""
    total: torch.Tensor
    """(batch, dim), rows beyond N are padding."""
    known: np.ndarray
    """(N,) bool."""
    environment: np.ndarray
    """(batch, D) what was read of it, rows beyond N are padding; empty where it was not."""


class Sloped(NamedTuple):
    """N places of a rectangle (n, m) with what is measured there, and its slopes."""

    raw: np.ndarray
    """As `Frame.raw` returns it: (S, n, m), one layer more where the agreement is asked for."""
    known: np.ndarray
    """(n, m) bool."""
    values: np.ndarray
    """(N, F) float32: the columns of the environment that the slopes are along."""
    slopes: np.ndarray
    """(S, N, F) float32: derivatives of the cosines."""


class Frame:
    """A rectangle of pixels whose places can be scored: slow modalities are encoded once, on entry.

    `rows` (n,), `cols` (m,): pixels counted from the anchor; `lon`, `lat`, `needed` (n, m): their positions,
    and which of them will be asked for.
    """

    def __init__(
        self,
        plan: Places,
        rows: np.ndarray,
        cols: np.ndarray,
        lon: np.ndarray,
        lat: np.ndarray,
        needed: np.ndarray,
    ) -> None:
        self.plan, self.rows, self.cols, self.lon, self.lat = plan, rows, cols, lon, lat
        groups: dict[int, list[str]] = {}
        for m in plan.blended:
            groups.setdefault(plan.strides[m], []).append(m)
        self.encoded = tuple(m for m in plan.modalities if m not in plan.blended)
        # Embeddings of one coarse lattice are added before they are interpolated: once, not per modality.
        self.blends = [Blend(plan, group, k, rows, cols, needed) for k, group in groups.items()]

    def raw(self, plan: Plan, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What each target measures at the wanted places (n, m): its cosine, with what is known of the range, or the
        logit of its fit.

        Returns (S, n, m) float32, 0 elsewhere, and which of the places are known (n, m). Of a plan that is `doubted`
        one layer more: how well the modalities agree.
        """
        import torch

        from sdm.models.score import normalise, similarity

        count = len(plan.targets)
        raw = np.zeros((count + plan.doubted, wanted.size), dtype=np.float32)
        known = np.zeros(wanted.size, dtype=bool)
        vectors = torch.from_numpy(plan.species).to(plan.here)
        fits = [(k, target.fit) for k, target in enumerate(plan.targets) if target.fit is not None]
        for places, total, ok, environment in self._sums(wanted, plan.environment if fits else None):
            if len(fits) < count:
                raw[:count, places] = similarity(total, vectors)[: places.size].T.cpu().numpy()
            if fits:
                # With its padding: products of another shape may round differently.
                embeddings = normalise(total).cpu().numpy()
                for k, fit in fits:
                    raw[k, places] = fit.logit(embeddings, environment)[: places.size]
            if plan.doubted:
                raw[count, places] = self._agreement(total)[: places.size]
            known[places] = ok
        self._add_known_ranges(plan, raw, np.flatnonzero(wanted))
        return raw.reshape(-1, *wanted.shape), known.reshape(wanted.shape)

    def slopes(self, plan: Plan, wanted: np.ndarray, columns: np.ndarray) -> Sloped:
        """The cosines of the targets at the wanted places (n, m), and their slopes along some columns (F,) of values.

        Without what is known of the ranges.
        """
        import torch

        from sdm.models.score import similarity

        count, number = len(plan.targets), int(wanted.sum())
        raw = np.zeros((count + plan.doubted, wanted.size), dtype=np.float32)
        known = np.zeros(wanted.size, dtype=bool)
        values = np.empty((number, columns.size), dtype=np.float32)
        slopes = np.empty((count, number, columns.size), dtype=np.float32)
        row = np.cumsum(wanted.ravel()) - 1
        encoders = plan.model.load(plan.here)
        assert isinstance(encoders, SlopedEncoders)
        vectors = torch.from_numpy(plan.species).to(plan.here)
        for places, rest, ok, environment in self._sums(wanted, unencoded=("environment",)):
            size, at = places.size, row[places]
            with torch.inference_mode(False), torch.enable_grad():
                x, unit = encoders.encode_with_slopes(environment)
                total = unit + rest
                cosines = similarity(total, vectors)
                for k in range(count):
                    (slope,) = torch.autograd.grad(cosines[:, k].sum(), x, retain_graph=k + 1 < count)
                    slopes[k, at] = slope[:size].cpu().numpy()[:, columns]
            raw[:count, places] = cosines.detach()[:size].T.cpu().numpy()
            if plan.doubted:
                raw[count, places] = self._agreement(total.detach())[:size]
            known[places] = ok
            values[at] = environment[:size, columns]
        return Sloped(raw.reshape(-1, *wanted.shape), known.reshape(wanted.shape), values, slopes)

    def _add_known_ranges(self, plan: Plan, raw: np.ndarray, places: np.ndarray) -> None:
        """Add to the cosines (S, n * m) of places, flat indices, what is known of the targets' ranges."""
        if any(target.known is not None for target in plan.targets):
            lon, lat = self.lon.ravel()[places], self.lat.ravel()[places]
            for k, target in enumerate(plan.targets):
                cosines = raw[k, places]
                target.add_known(cosines, lon, lat)
                raw[k, places] = cosines

    def bands(self, plan: Plan, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The measured bands of all targets, one after the other, at the wanted places (n, m).

        Returns (B, n, m) float32, 0 elsewhere, and which of the places are known (n, m).
        """
        from sdm.models.score import normalise

        out = np.zeros((sum(len(t.measured) for t in plan.targets), wanted.size), dtype=np.float32)
        known = np.zeros(wanted.size, dtype=bool)
        for places, total, ok, environment in self._sums(wanted, plan.environment):
            out[:, places] = measure(plan, normalise(total).cpu().numpy(), environment)[:, : places.size]
            known[places] = ok
        return out.reshape(-1, *wanted.shape), known.reshape(wanted.shape)

    def embeddings(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit embeddings (N, dim) float32 of the N wanted places, in order.

        Also which of them are known (N,), and how well their modalities agree (N,) float32.
        """
        from sdm.models.score import normalise

        row = np.cumsum(wanted.ravel()) - 1
        out = np.empty((int(wanted.sum()), self.plan.model.dim), dtype=np.float32)
        known, agreement = np.zeros(len(out), dtype=bool), np.zeros(len(out), dtype=np.float32)
        for places, total, ok, _ in self._sums(wanted):
            out[row[places]] = normalise(total)[: places.size].cpu().numpy()
            agreement[row[places]] = self._agreement(total)[: places.size]
            known[row[places]] = ok
        return out, known, agreement

    def _agreement(self, total: torch.Tensor) -> np.ndarray:
        """How well the modalities of places agree, (batch,): length of their sum (batch, dim) over their number."""
        import torch

        return torch.linalg.vector_norm(total, dim=-1).cpu().numpy() / np.float32(len(self.plan.modalities))

    def _sums(
        self, wanted: np.ndarray, environment: Read | None = None, unencoded: tuple[str, ...] = ()
    ) -> Iterator[Sum]:
        """The wanted places, batch by batch; with `environment`, what is read of it where it is not encoded.

        `unencoded`: modalities that are read and left out of the sum.
        """
        import torch

        todo = np.flatnonzero(wanted)
        lon, lat = self.lon.ravel()[todo], self.lat.ravel()[todo]
        near = np.logical_and.reduce([blend.known for blend in self.blends]) if self.blends else None
        p = self.plan
        with torch.inference_mode(), one_thread(p.here):
            for batch in embed_batches(p.model, p.inputs, p.here, self.encoded, lon, lat, p.month, unencoded):
                places, total, known = todo[batch.part], batch.total, batch.known
                for blend in self.blends:
                    total += blend.at(places, len(total))
                if near is not None:
                    known = known & near.ravel()[places]
                read = batch.values.get("environment", _NOTHING)
                if environment is not None and "environment" not in batch.values:
                    padding = (0, len(total) - places.size)
                    read, there = environment(
                        *(np.pad(np.nan_to_num(a[batch.part]), padding, mode="edge") for a in (lon, lat))
                    )
                    known = known & there[: places.size]
                yield Sum(places, total, known, read)


_NOTHING = np.empty((0, 0), dtype=np.float32)
