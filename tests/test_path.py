# Copyright 2026 The hf_exptest authors.
# SPDX-License-Identifier: Apache-2.0

import pytest
import torch

from hf_exptest.path import PathMeter


def walk(parameters, num_steps, seed=0):
    """Move the parameters by random steps with a drift; yields after each, with the step's full vector."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        moves = [0.2 + torch.randn(p.shape, generator=generator) for p in parameters]
        with torch.no_grad():
            for parameter, move in zip(parameters, moves, strict=True):
                parameter.add_(move)
        yield torch.cat([move.flatten() for move in moves])


def make_parameters(*shapes):
    return [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]


def ratio(*meters):
    """What the scheduler does at the end of a window: the mean of the sums over all processes, each with a meter."""
    sums = torch.stack([torch.stack(meter.partial_sums()) for meter in meters]).mean(0)
    for meter in meters:
        meter.take(sums.tolist())
    return meters[0].ratio()


def slow_ratio(steps):
    return (sum(step.norm() for step in steps) / sum(steps).norm()).item()


def test_equals_the_slow_ratio_when_measured_whole():
    parameters = make_parameters((3, 4), (5,))
    meter = PathMeter(parameters)
    steps = []
    for step in walk(parameters, 7):
        meter.record()
        steps.append(step)
    assert ratio(meter) == pytest.approx(slow_ratio(steps), rel=1e-5)


def test_a_complex_parameter_is_two_real_ones():
    whole = torch.nn.Parameter(torch.tensor([1.0 + 2.0j, 3.0 - 1.0j]))
    meter = PathMeter([whole])
    with torch.no_grad():
        whole += torch.tensor([3.0j, 4.0])
    assert [float(x) for x in meter.distance_and_size()] == [25.0, 15.0]


def test_sample_estimates_the_ratio_of_a_large_model():
    parameters = make_parameters((300, 500), (100, 300))
    meter = PathMeter(parameters, max_coordinates=10_000)
    steps = []
    for step in walk(parameters, 5):
        meter.record()
        steps.append(step)
    assert ratio(meter) == pytest.approx(slow_ratio(steps), rel=0.05)
    stored = sum(x.numel() for name in ("start", "last") for x in meter.state_dict()[name])
    assert stored <= 2 * 10_003


def test_distance_and_size_are_those_of_the_parameters():
    parameters = make_parameters((3, 4), (5,))
    for _ in walk(parameters, 2):
        start = torch.cat([p.detach().flatten() for p in parameters])
    meter = PathMeter(parameters)
    for _ in walk(parameters, 7):
        now = torch.cat([p.detach().flatten() for p in parameters])
    expected = [float((now - start).square().sum()), float(start.square().sum())]
    assert [float(x) for x in meter.distance_and_size()] == pytest.approx(expected)
    assert min(expected) > 0


def test_shards_add_up_to_the_whole():
    parameters = make_parameters((6, 4), (5,), (3,))
    whole, *shards = [PathMeter(part) for part in (parameters, parameters[:1], parameters[1:], [])]
    for i, _ in enumerate(walk(parameters, 9)):
        for meter in (whole, *shards):
            meter.record()
        if i == 3:
            ratio(whole), ratio(*shards)
    assert ratio(*shards) == pytest.approx(ratio(whole), rel=1e-6)
    assert shards[2].ratio() == shards[0].ratio() > 1.1


def test_sgd_path_is_the_papers_gradient_ratio():
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    meter = PathMeter(model.parameters())
    gradients = []
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten().clone() for p in model.parameters()]))
        optimizer.step()
        meter.record()
    assert ratio(meter) == pytest.approx(slow_ratio(gradients), rel=1e-4)


def test_straight_path_resets_and_rest():
    (parameter,) = parameters = make_parameters((4,))
    meter = PathMeter(parameters)
    assert ratio(meter) == 1.0
    for _ in walk(parameters, 3):
        meter.record()
    assert ratio(meter) > 1.5
    meter.reset()
    for _ in range(3):
        with torch.no_grad():
            parameter.add_(1.0)
        meter.record()
    assert ratio(meter) == pytest.approx(1.0, rel=1e-6)


def test_measuring_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    PathMeter(make_parameters((1000, 1000)))
    assert torch.equal(state, torch.get_rng_state())


def test_state_continues_the_path():
    parameters = make_parameters((3, 4))
    whole, first = PathMeter(parameters), PathMeter(parameters)
    second = None
    for i, _ in enumerate(walk(parameters, 8)):
        whole.record()
        if i < 4:
            first.record()
        elif i == 4:
            second = PathMeter(parameters)
            second.load_state_dict(first.state_dict())
        if i >= 4:
            second.record()
    assert ratio(second) == pytest.approx(ratio(whole), rel=1e-6)
    with pytest.raises(ValueError, match=r"\(12,\)"):
        PathMeter(make_parameters((5,))).load_state_dict(first.state_dict())
