"""The tasks on the digit networks: what they return, and what they refuse.

A real digit is not in the repository: the truth is drawn by the network itself.
"""

import os
import subprocess
import sys
from functools import cache

import pytest
import torch
from places import ROOT

import diffast as df
from diffast.tasks import colour, gaussian_kernel, opponent_basis
from diffast.tasks import digits as tasks

LABELS = torch.tensor([2, 3, 5, 7, 8, 0])
MASK = torch.ones(28, 28, dtype=torch.bool)
MASK[10:18, 10:18] = False


@cache
def truth():
    """Six digits that the judge reads as their labels."""
    denoiser = tasks.denoiser(len(LABELS), LABELS)
    plan = df.digits.load_plan(8)
    x = df.sample(denoiser, plan, (len(LABELS), 1, 28, 28), seed=7).x.clamp(-1, 1)
    assert (df.digits.load_judge()(x).argmax(1) == LABELS).all()
    return x


def psnr(x, wanted):
    return float((10 * (4 / (x.clamp(-1, 1) - wanted).square().mean(dim=(1, 2, 3))).log10()).mean())


def unlike(x, wanted):
    """Mean distance of the judge's features."""
    judge = df.digits.load_judge()
    return float((judge.features(x.clamp(-1, 1)) - judge.features(wanted)).norm(dim=1).mean())


def right(x, labels=LABELS):
    return float((df.digits.load_judge()(x.clamp(-1, 1)).argmax(1) == labels).double().mean())


@pytest.mark.parametrize("method", ["ddnm", "repaint", "mcg"])
def test_inpainting_keeps_what_is_known(method):
    image = torch.where(MASK, truth(), torch.full((), torch.nan))  # what is hidden may be anything
    made = tasks.inpaint(image, MASK, method=method, calls=18, seed=1).x
    assert made.shape == (6, 1, 28, 28)
    torch.testing.assert_close(made[..., MASK], truth()[..., MASK], rtol=0, atol=1e-5)
    empty = torch.where(MASK, truth(), torch.full((), -1.0))
    assert psnr(made, truth()) > psnr(empty, truth()) + 2


def test_super_resolution_has_the_block_means():
    small = torch.nn.functional.avg_pool2d(truth(), 4)
    made = tasks.super_resolve(small, 4, method="ddnm", calls=18, seed=1).x
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(made, 4), small, rtol=0, atol=1e-4)
    blocks = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert psnr(made, truth()) > psnr(blocks, truth()) + 1
    assert right(made) > 0.6


@pytest.mark.parametrize("method", ["pigdm", "dps", "mmps", "diffpir"])
def test_methods_with_gradients_and_proximal_steps_take_noise(method):
    operator, noise = df.tasks.super_resolution(4), 0.1
    fresh = torch.randn(6, 1, 7, 7, generator=torch.Generator().manual_seed(1))
    small = operator.forward(truth()) + noise * fresh
    # DiffPIR makes no backward pass, and wants more calls
    options = {"calls": 30, "strength": 1.0} if method == "diffpir" else {"calls": 10}
    made = tasks.super_resolve(small, 4, method=method, noise=noise, seed=1, **options).x
    blocks = operator.pseudo_inverse(small)
    assert psnr(made, truth()) > psnr(blocks, truth())
    assert unlike(made, truth()) < 0.6 * unlike(blocks, truth())
    # no nearer to the noisy measurement than the noise lets expect, nor much farther
    off = float((operator.forward(made) - small).square().mean().sqrt())
    assert 0.5 * noise < off < 3 * noise


def test_deblurring():
    operator = df.tasks.blur(gaussian_kernel(1.5))
    made = tasks.deblur(operator.forward(truth()).clamp(-1, 1), gaussian_kernel(1.5), calls=12).x
    assert psnr(made, truth()) > psnr(operator.forward(truth()), truth()) + 6
    assert right(made) == 1.0


def test_noise_in_the_image_is_taken_out():
    noise = 0.2 * torch.randn(truth().shape, generator=torch.Generator().manual_seed(0))
    image, everything = truth() + noise, torch.ones(28, 28)
    options = {"method": "ddnm", "calls": 20, "repeats": 1, "seed": 1}
    made = tasks.inpaint(image, everything, noise=0.2, **options).x
    assert psnr(made, truth()) > psnr(image, truth()) + 3


def test_colourising_finds_one_ink_and_keeps_the_digit():
    ink = torch.tensor([0, 1, 2, 0, 1, 2])
    coloured = df.digits.tint(truth(), ink)
    grey = coloured.mean(dim=1, keepdim=True)
    made = tasks.colourise(grey, method="repaint", calls=18, seed=1).x
    value = colour(opponent_basis()[0])
    torch.testing.assert_close(value.forward(made), value.forward(coloured), rtol=0, atol=1e-4)
    amount = (made.clamp(-1, 1) + 1).square().sum(dim=(2, 3))  # [B, 3]
    found = amount.argmax(dim=1)
    assert (amount.amax(dim=1) / amount.sum(dim=1)).min() > 0.9
    assert right(made[torch.arange(6), found][:, None]) > 0.8
    assert len(set(found.tolist())) > 1  # the grey value says nothing of the ink


def test_a_hint_of_the_colour_is_followed():
    ink = torch.tensor([1, 1, 2, 2, 0, 0])
    coloured = df.digits.tint(truth(), ink)
    grey = coloured.mean(dim=1, keepdim=True)
    half = torch.zeros(28, 28, dtype=torch.bool)
    half[:, :14] = True
    made = tasks.colourise(grey, coloured, half, method="repaint", calls=24, seed=2).x
    torch.testing.assert_close(made[..., :14], coloured[..., :14], rtol=0, atol=1e-4)
    found = (made.clamp(-1, 1) + 1).square().sum(dim=(2, 3)).argmax(dim=1)
    assert (found == ink).double().mean() > 0.8


def test_the_denoiser_of_coloured_digits_is_the_posterior_mean():
    """At low noise the coloured image itself; its channels are those of the grey denoiser."""
    network, unet = df.digits.load_tinted(), df.digits.load_unet()
    ink, null = torch.tensor([0, 1, 2, 2, 1, 0]), torch.full((6,), df.digits.NULL_LABEL)
    coloured = df.digits.tint(truth(), ink)
    noise = torch.randn(coloured.shape, generator=torch.Generator().manual_seed(4))
    for sigma in (0.05, 0.5, 80.0):
        t = torch.full((6,), sigma)
        x = coloured + sigma * noise
        shares = network.inks(x, t)
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(6))
        x0 = network(x, t, null)
        for channel in range(3):
            wanted = shares[:, channel, None, None] * (unet(x[:, [channel]], t, null)[:, 0] + 1) - 1
            torch.testing.assert_close(x0[:, channel], wanted, rtol=1e-4, atol=1e-5)
        if sigma < 1:
            assert (shares.argmax(dim=1) == ink).all() and shares.amax(dim=1).min() > 0.99
            assert (x0 - coloured).square().mean().sqrt() < 0.2
        else:
            assert shares.amax() < 0.8


def test_a_class_is_drawn():
    labels = torch.arange(10)
    made = tasks.draw(labels, calls=12, seed=1).x
    assert right(made, labels) > 0.85
    free = tasks.draw(labels, calls=12, seed=1, scale=0.0).x
    assert right(free, labels) < 0.5


@pytest.mark.parametrize("through", ["network", "x0"])
def test_a_caption_is_written(through):
    names, labels = ("two", "three", "five", "eight"), LABELS[[0, 1, 2, 4]]
    scale = 5.0 if through == "network" else 20.0
    thin, bold = (
        tasks.write([f"a {how} {name}" for name in names], through=through, scale=scale, calls=14)
        for how in ("thin", "bold")
    )
    assert (right(thin.x, labels) + right(bold.x, labels)) / 2 > 0.8
    assert bold.x.mean() > thin.x.mean() + 0.05


def test_captions_are_read_by_letters():
    words = df.digits.load_words()
    logits = words(truth(), ["two", "3", "the digit five", "SEVEN", "a  eight", "zero or one"])
    assert (logits.argmax(dim=1) == torch.arange(6)).all()
    either = words(truth(), ["two or three"])[:, 0] > 0
    assert either.tolist() == [True, True, False, False, False, False]


def test_several_samples_of_one_image_depend_on_their_ids_alone():
    image, options = truth()[:1], {"calls": 6, "seed": 5}
    three = tasks.inpaint(image, MASK, samples=3, **options).x
    last = tasks.inpaint(image, MASK, samples=1, ids=[2], **options).x
    torch.testing.assert_close(three[2:], last, rtol=1e-4, atol=1e-4)
    assert (three[0] - three[1]).abs().max() > 0.1


def test_prepare_is_the_run_before_it_is_made():
    options = {"method": "repaint", "calls": 6, "repeats": 2, "labels": [2, 3]}
    task = tasks.prepare("inpaint", truth()[:2], MASK, **options)
    assert task.shape == (2, 1, 28, 28) and task.setup.plan.nfe == 6
    made = task.sample(seed=3).x
    wanted = tasks.inpaint(truth()[:2], MASK, seed=3, **options).x
    torch.testing.assert_close(made, wanted, rtol=0, atol=0)


def test_a_plan_that_was_tuned_for_the_network_is_taken_without_a_warning():
    small = torch.nn.functional.avg_pool2d(truth(), 4)
    plan = df.digits.load_plan(8)
    # a warning would be an error here
    made = tasks.super_resolve(small, 4, method="repaint", plan=plan, seed=1).x
    assert psnr(made, truth()) > psnr(
        small.repeat_interleave(4, 2).repeat_interleave(4, 3), truth()
    )


@pytest.mark.slow
def test_the_example_draws_every_task(tmp_path):
    pytest.importorskip("PIL")
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / "digit_tasks.py", "--out", tmp_path]
        + ["--count", "3", "--calls", "6"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    names = [line.partition(":")[0] for line in run.stdout.splitlines()]
    assert len(names) == 6
    assert {path.name for path in tmp_path.iterdir()} == {f"task_{name}.png" for name in names}


IMAGE = torch.zeros(28, 28)
WRONG = {
    "mask of the wrong size": (
        lambda: tasks.inpaint(IMAGE, torch.ones(14, 14)),
        r"the mask is \[14, 14\], but the digits are \[28, 28\]",
    ),
    "mask of two images": (
        lambda: tasks.inpaint(IMAGE.expand(3, 1, 28, 28), torch.ones(2, 1, 28, 28)),
        r"mask is \[2, 1, 28, 28\], but the images are \[3, 1, 28, 28\]",
    ),
    "bytes": (lambda: tasks.inpaint(IMAGE.byte(), MASK), "torch.uint8, but pixels are numbers in"),
    "outside": (lambda: tasks.inpaint(IMAGE + 255.0, MASK), r"holds 255, but pixels lie in \[-1,"),
    "a known NaN": (lambda: tasks.inpaint(IMAGE + torch.nan, MASK), "not finite"),
    "small image": (
        lambda: tasks.super_resolve(torch.zeros(14, 14), 4),
        r"the image is \[1, 1, 14, 14\], but \[B, 1, 7, 7\] is needed",
    ),
    "factor": (lambda: tasks.super_resolve(torch.zeros(9, 9), 3), "factor is 3, but it does not"),
    "two channels": (
        lambda: tasks.deblur(torch.zeros(1, 2, 28, 28), torch.ones(1, 1)),
        r"the image is \[1, 2, 28, 28\]",
    ),
    "hint without mask": (lambda: tasks.colourise(IMAGE, IMAGE), "a hint needs a mask"),
    "mask of colours": (
        lambda: tasks.colourise(IMAGE, torch.zeros(3, 28, 28), torch.ones(8, 8)),
        r"the mask is \[1, 1, 8, 8\], but the digits are",
    ),
    "method": (
        lambda: tasks.inpaint(IMAGE, MASK, method="repant"),
        r"method 'repant' is not known \(did you mean repaint\?\)",
    ),
    "noise and repaint": (
        lambda: tasks.inpaint(IMAGE, MASK, noise=0.1, method="repaint"),
        "repaint: noise is 0.1, but",
    ),
    "calls": (
        lambda: tasks.inpaint(IMAGE, MASK, calls=2, repeats=3),
        "calls = 2 and repeats = 3, but 1 <= repeats <= calls",
    ),
    "no calls": (lambda: tasks.inpaint(IMAGE, MASK, calls=0), "calls is 0, but it must be a whole"),
    "samples": (
        lambda: tasks.inpaint(IMAGE.expand(2, 1, 28, 28), MASK, samples=3),
        "2 images are given, but 3 samples",
    ),
    "label": (lambda: tasks.inpaint(IMAGE, MASK, labels=11), "label 11 is given, but digits"),
    "labels": (
        lambda: tasks.inpaint(IMAGE, MASK, labels=[1, 2]),
        r"labels are torch.int64 \[2\], but a whole number for each of 1",
    ),
    "class": (lambda: tasks.draw([3, 10]), "label 10 is given, but digits are 0 to 9"),
    "classes": (lambda: tasks.draw([0.5]), "labels are torch.float32"),
    "letters": (lambda: tasks.write("ein große 3"), "holds 'ß', but captions are made of"),
    "no caption": (lambda: tasks.write(""), "has no letters"),
    "captions": (lambda: tasks.write(["one", "two"], samples=3), "2 captions are given, but 3"),
    "a scale of inf": (lambda: tasks.draw(3, scale=float("inf")), "scale is inf"),
    "task": (lambda: tasks.prepare("inpant"), r"task 'inpant' is not known \(did you mean inp"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_refused_in_words(name):
    act, said = WRONG[name]
    with pytest.raises(ValueError, match=said):
        act()
