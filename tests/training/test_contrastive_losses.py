"""Contrastive losses against slow formulas, and batches shared by processes."""

import math

import numpy as np
import pytest
import torch

from sdm.training.data.drawing import random_places
from sdm.training.distributed import gather, share
from sdm.training.objectives import contrastive_losses as c


def unit(n, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, dim, generator=generator, dtype=torch.float64), dim=-1)


def slow_supcon(a, b, positive, scale):
    """One direction, by loops: mean over queries of the mean over positives of -log softmax."""
    total = 0.0
    for i in range(len(a)):
        weights = [math.exp(scale * float(a[i] @ b[j])) for j in range(len(b))]
        wanted = [j for j in range(len(b)) if positive(i, j)]
        total -= sum(math.log(weights[j] / sum(weights)) for j in wanted) / len(wanted)
    return total / len(a)


def slow_location(queries, partners, negatives, species, scale):
    total = 0.0
    for i in range(len(queries)):
        keys = [partners[j] for j in range(len(partners)) if j == i or species[j] != species[i]] + list(negatives)
        weights = [math.exp(scale * float(queries[i] @ k)) for k in keys]
        total -= math.log(math.exp(scale * float(queries[i] @ partners[i])) / sum(weights))
    return total / len(queries)


A, B, OTHERS = unit(7), unit(7, seed=1), unit(5, seed=2)
SPECIES = [0, 1, 0, 2, 1, 0, 3]


def test_info_nce():
    both = slow_supcon(A, B, lambda i, j: i == j, 9.0) + slow_supcon(B, A, lambda i, j: i == j, 9.0)
    assert float(c.info_nce(A, B, 9.0)) == pytest.approx(both / 2, rel=1e-5)


def test_supcon():
    same = lambda i, j: SPECIES[i] == SPECIES[j]  # noqa: E731
    both = slow_supcon(A, B, same, 9.0) + slow_supcon(B, A, same, 9.0)
    assert float(c.supcon(A, B, torch.tensor(SPECIES), 9.0)) == pytest.approx(both / 2, rel=1e-5)
    alone = torch.arange(7)
    assert float(c.supcon(A, B, alone, 9.0)) == pytest.approx(float(c.info_nce(A, B, 9.0)), rel=1e-6)


@pytest.mark.parametrize("weights", [(0.4, 0.6), (1.0, 0.25)])
@pytest.mark.parametrize("negatives", [OTHERS, OTHERS[:0]])
def test_location_loss(weights, negatives):
    expected = weights[0] * slow_location(A, B, negatives, SPECIES, 9.0)
    expected += weights[1] * slow_location(B, A, [], SPECIES, 9.0)
    loss = c.location_loss(A, B, negatives, torch.tensor(SPECIES), 9.0, weights)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_sigmoid_pairs():
    expected = 0.0
    for i in range(7):
        for j in range(7):
            p = 1 / (1 + math.exp(-(9.0 * float(A[i] @ B[j]) - 3.0)))
            expected -= math.log(p if SPECIES[i] == SPECIES[j] else 1 - p) / 7
    assert float(c.sigmoid_pairs(A, B, torch.tensor(SPECIES), 9.0, -3.0)) == pytest.approx(expected, rel=1e-5)


def losses(a, b, negatives, species, scale, rows):
    return [
        c.info_nce(a, b, scale, rows),
        c.supcon(a, b, species, scale, rows),
        c.location_loss(a, b, negatives, species, scale, rows=rows),
        c.sigmoid_pairs(a, b, species, scale, -3.0, rows),
    ]


def test_parts_of_a_batch_add_up_to_it():
    species = torch.tensor(SPECIES[:6])
    a, b = A[:6], B[:6]
    whole = losses(a, b, OTHERS, species, 9.0, slice(None))
    first, second = (losses(a, b, OTHERS, species, 9.0, r) for r in (slice(0, 3), slice(3, 6)))
    for w, x, y in zip(whole, first, second, strict=True):
        assert float(w) == pytest.approx(float(x + y) / 2, rel=1e-6)


def test_losses_stay_in_float32_under_autocast():
    a, b = unit(64, 512).float(), unit(64, 512, seed=1).float()
    species = torch.arange(64) // 2
    exact = losses(a, b, b[:8], species, 100.0, slice(None))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = losses(a, b, b[:8], species, 100.0, slice(None))
    assert [float(x) for x in inside] == [float(x) for x in exact]
    assert {x.dtype for x in inside} == {torch.float32}


def test_temperature():
    t = c.Temperature()
    assert float(t().detach()) == pytest.approx(1 / 0.07)
    with torch.no_grad():
        t.log_scale.fill_(9.0)
    t.clamp()
    assert float(t().detach()) == pytest.approx(100.0)
    assert not c.Temperature(0.01, learned=False).log_scale.requires_grad


def test_random_places_are_uniform_by_area_or_by_degrees():
    for uniform, tropics in (("area", 0.5), ("degrees", 1 / 3)):  # between 30 S and 30 N
        lonlat = random_places(40_000, np.random.default_rng(0), uniform)
        assert np.abs(lonlat[:, 0]).max() <= 180.0
        assert np.abs(lonlat[:, 1]).max() <= 90.0
        assert (np.abs(lonlat[:, 1]) < 30).mean() == pytest.approx(tropics, abs=0.01)
        assert (lonlat[:, 0] < 90).mean() == pytest.approx(0.75, abs=0.01)


def gathered(rank, address, results):
    """One of two processes: half of the rows, the gradient of the mean over both."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    try:
        rows = share(6)
        a, b = A[:6][rows].clone().requires_grad_(), B[:6][rows].clone().requires_grad_()
        n = OTHERS[:4][share(4)].clone().requires_grad_()
        scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
        total = sum(losses(gather(a), gather(b), gather(n), torch.tensor(SPECIES[:6]), scale, rows))
        total.backward()
        torch.save([total.detach(), a.grad, b.grad, n.grad, scale.grad], f"{results}{rank}")
    finally:
        dist.destroy_process_group()


def test_two_processes_have_the_gradients_of_one(tmp_path):
    a, b = A[:6].clone().requires_grad_(), B[:6].clone().requires_grad_()
    n, scale = OTHERS[:4].clone().requires_grad_(), torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    total = sum(losses(a, b, n, torch.tensor(SPECIES[:6]), scale, slice(None)))
    total.backward()
    torch.multiprocessing.spawn(gathered, (str(tmp_path / "meet"), str(tmp_path / "result")), nprocs=2)
    first, second = (torch.load(tmp_path / f"result{r}") for r in (0, 1))
    assert float(first[0] + second[0]) / 2 == pytest.approx(float(total.detach()), rel=1e-6)
    # Embeddings: each process has the sum over both losses for its own rows; DDP then halves it with the rest.
    for k, x in ((1, a), (2, b), (3, n)):
        assert torch.allclose(torch.cat([first[k], second[k]]) / 2, x.grad, rtol=1e-5, atol=1e-7)
    assert torch.allclose((first[4] + second[4]) / 2, scale.grad, rtol=1e-5)
