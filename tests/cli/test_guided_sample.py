"""`diffast sample` with guidance rules, correctors and tasks: what it runs, what it refuses."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import diffast as df
from diffast.cli import main
from diffast.digits import NULL_LABEL, load_unet

EDM = df.schedules.edm()
FAST = ["--quiet", "--count", "2"]


def said(capsys, *arguments):
    """What the command prints on stderr, with status 2."""
    assert main(["sample", *FAST, *map(str, arguments)]) == 2
    return capsys.readouterr().err


def run(tmp_path, *arguments):
    out = tmp_path / "out.npz"
    assert main(["sample", *FAST, *map(str, arguments), "--out", str(out)]) == 0
    with np.load(out) as made:
        return made["x"], json.loads(str(made["facts"]))


def png(path, pixels):
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def files(tmp_path):
    """A digit that is a bar, and the mask of its upper half."""
    image, mask = np.zeros((28, 28)), np.zeros((28, 28))
    image[4:24, 12:16], mask[:14] = 255, 255
    return png(tmp_path / "i.png", image), png(tmp_path / "m.png", mask)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("apg:eta=0.5,norm_threshold=10", lambda g: g.apg(2.0, eta=0.5, norm_threshold=10.0)),
        ("rescale:phi=0.7", lambda g: g.rescale(0.7, 2.0)),
        ("interval:low=0.2,high=5", lambda g: g.interval(2.0, 0.2, 5.0)),
        ("tcfg:scale=3", lambda g: g.tcfg(3.0)),
        ("dynamic_threshold:p=0.9", lambda g: g.dynamic_threshold(0.9, rule=2.0)),
    ],
)
def test_a_guidance_rule_is_that_of_python(tmp_path, text, rule):
    got, facts = run(tmp_path, "--steps", 2, "--guidance", 2, "--guidance-rule", text)
    denoiser = df.Denoiser(
        load_unet(),
        EDM,
        "x0",
        conditions={"labels": torch.tensor([0, 1])},
        unconditional={"labels": torch.tensor([NULL_LABEL])},
        guidance=rule(df.guidance),
    )
    plan = df.solvers.dpmpp_2m(EDM, df.grids.karras(EDM, 2))
    np.testing.assert_array_equal(got, df.sample(denoiser, plan, (2, 1, 28, 28)).x)
    assert facts["guidance_rule"] == text


def test_a_corrector_is_that_of_python(tmp_path):
    got, facts = run(tmp_path, "--steps", 2, "--corrector", "ulmc:n=1")
    plan = df.solvers.dpmpp_2m(EDM, df.grids.karras(EDM, 2))
    plan = df.solvers.predictor_corrector(plan, "ulmc:n=1")
    denoiser = df.Denoiser(load_unet(), EDM, "x0", conditions={"labels": torch.tensor([0, 1])})
    np.testing.assert_array_equal(got, df.sample(denoiser, plan, (2, 1, 28, 28)).x)
    assert facts["network_calls"] == plan.nfe > 2


def test_inpainting_keeps_the_known_pixels(tmp_path, files, capsys):
    image, mask = files
    got, facts = run(tmp_path, "--task", "inpaint:calls=6", "--image", image, "--mask", mask)
    assert got.shape == (2, 1, 28, 28)
    wanted = np.asarray(Image.open(image)) / 127.5 - 1
    np.testing.assert_allclose(got[0, 0, :14], wanted[:14], atol=0.02)
    assert facts["task"] == "inpaint:calls=6"
    assert "digits         2 (task inpaint:calls=6)" in capsys.readouterr().out


def test_the_other_tasks_run(tmp_path, files):
    image, _ = files
    small = png(tmp_path / "s.png", np.asarray(Image.open(image))[::4, ::4])
    np.save(tmp_path / "i.npy", np.asarray(Image.open(image)) / 127.5 - 1)
    for more, channels in (
        (["super-resolution:factor=4,calls=4", "--image", small, "--classes", "1"], 1),
        (["deblur:kernel=1.5,calls=4", "--image", tmp_path / "i.npy"], 1),
        (["colorize:calls=4,method=ddnm", "--image", image], 3),
        (["class:scale=3,calls=2", "--classes", "3,7"], 1),
        (["text:calls=2", "--text", "seven"], 1),
    ):
        got, _ = run(tmp_path, "--task", *more)
        assert got.shape == (2, channels, 28, 28) and np.isfinite(got).all()


def test_a_task_takes_another_plan_and_a_corrector(tmp_path):
    options = ["--task", "class", "--steps", 2, "--solver", "euler", "--corrector", "olmc:n=1"]
    _, facts = run(tmp_path, *options)
    assert facts["network_calls"] == 3 and "euler" in facts["solver"]


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        (["--guidance-rule", "apgg"], "guidance rule 'apgg' is not known.*apg"),
        (["--guidance-rule", "apg"], "apg changes nothing at a scale of 1: give another"),
        (["--guidance-rule", "apg:et=1"], "option 'et', but the options are: .*eta.*scale"),
        (["--guidance-rule", "interval", "--guidance", "2"], "interval needs low, high: inte"),
        (["--guidance-rule", "apg:eta=1e", "--guidance", "2"], "eta is '1e', but a number is"),
        (["--guidance-rule", "apg:eta"], "'eta', but NAME:key=value is needed"),
        (["--guidance-rule", "autoguidance:scale=2"], "autoguidance needs another network"),
        (["--guidance-rule", "rescale:phi=3", "--guidance", "2"], "guidance.rescale: phi is 3"),
        (["--corrector", "ulmcc"], "corrector 'ulmcc' is not known.*ulmc"),
        (["--task", "inpainting"], "task 'inpainting' is not known.*inpaint"),
        (["--task", "inpaint"], "--task inpaint needs --image, but it is not given"),
        (["--task", "inpaint", "--image", "IMAGE"], "--task inpaint needs --mask, but it is not"),
        (["--task", "class", "--image", "IMAGE"], "--image is given, but --task class takes none"),
        (["--mask", "MASK"], "--mask is given, but no --task that takes it"),
        (["--task", "class", "--guidance", "2"], "--guidance and --task are both given, but a ta"),
        (
            ["--task", "text", "--text", "seven", "--guidance-rule", "apg"],
            "--guidance-rule and --t",
        ),
        (["--task", "class:steps=3"], "--task class: option 'steps', but the options are: scale"),
        (["--task", "deblur:method=dppp", "--image", "IMAGE"], "method 'dppp' is not known.*dps"),
        (["--task", "deblur:what=3", "--image", "IMAGE"], "'deblur:what=3': .*what"),
        (["--task", "deblur", "--image", "none.png"], "--image none.png: there is no such file"),
        (["--task", "deblur", "--image", "i.jpg"], "ends in '.jpg', but .png or .npy is needed"),
        (["--task", "deblur", "--image", "BAD"], "bad.png is no PNG that can be read"),
        (["--task", "deblur", "--image", "WIDE"], "wide.png is 30 x 28 pixels, but 28 x 28 are n"),
        (["--task", "super-resolution", "--image", "IMAGE"], "is 28 x 28 pixels, but 7 x 7 are"),
        (["--task", "deblur", "--image", "LOUD"], "loud.npy holds 3, but pixels lie in .-1, 1."),
        (["--task", "inpaint", "--image", "IMAGE", "--mask", "WIDE"], "--mask .*wide.png is 30 x"),
        (
            ["--task", "inpaint", "--image", "IMAGE", "--mask", "GREY"],
            "grey.png holds 100, but a m",
        ),
    ],
)
def test_what_is_refused(tmp_path, files, capsys, given, facts):
    np.save(tmp_path / "loud.npy", np.full((28, 28), 3.0))
    (tmp_path / "bad.png").write_text("no picture")
    known = {
        "IMAGE": files[0],
        "MASK": files[1],
        "BAD": tmp_path / "bad.png",
        "WIDE": png(tmp_path / "wide.png", np.zeros((28, 30))),
        "GREY": png(tmp_path / "grey.png", np.full((28, 28), 100)),
        "LOUD": tmp_path / "loud.npy",
    }
    out = tmp_path / "x.npz"
    error = said(capsys, *(known.get(word, word) for word in given), "--out", out)
    assert error.count("\n") == 1
    assert re.search(facts, error), error
    assert not out.exists()


def test_a_picture_of_16_bits_is_not_clipped(tmp_path, files):
    image, mask = files
    grey = np.linspace(0, 255, 28 * 28).reshape(28, 28).round()
    deep = tmp_path / "deep.png"
    Image.fromarray((grey * 257).astype(np.uint16)).save(deep)
    flat = png(tmp_path / "flat.png", grey)
    made = []
    for path in (deep, flat):
        arguments = ["--task", "inpaint:calls=2", "--image", path, "--mask", mask]
        made.append(run(tmp_path, *arguments)[0])
    np.testing.assert_allclose(made[0], made[1], rtol=0, atol=1e-6)


def test_files_that_have_no_one_grey_value_a_pixel(tmp_path, capsys, files):
    image, mask = files
    pixels = np.full((28, 28, 4), 255, dtype=np.uint8)
    pixels[:14, :, 3] = 0
    glass, colours, empty = (tmp_path / name for name in ("g.png", "c.npy", "e.npy"))
    Image.fromarray(pixels).save(glass)
    np.save(colours, np.zeros((3, 28, 28)))
    empty.write_bytes(b"")
    task = ["--task", "inpaint:calls=2", "--image"]
    assert "g.png is transparent in places" in said(capsys, *task, image, "--mask", glass)
    assert "c.npy is 28 x 28 x 3 pixels, but 28 x 28" in said(
        capsys, *task, colours, "--mask", mask
    )
    assert "e.npy is no array of numpy" in said(capsys, *task, empty, "--mask", mask)


def test_numbers_of_a_task_that_disagree(capsys, files):
    image, mask = files
    inpaint = ["--image", image, "--mask", mask]
    for arguments, facts in (
        (["inpaint:calls=2", *inpaint, "--steps", 3], "is given calls, and the plan's flags give"),
        (["super-resolution:factor=3", "--image", image], "factor is 3, but it must divide 28"),
        (["deblur:noise=-1", "--image", image], "noise is -1"),
    ):
        assert facts in said(capsys, "--task", *arguments)
    interval = ["--guidance", 2, "--guidance-rule", "interval:low=a,high=2"]
    assert "low is 'a' but must be a number" in said(capsys, *interval)
