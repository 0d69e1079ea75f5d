"""The digit networks, their loaders and the quality measures; no data file is needed."""

import importlib.util
import json
import math
import sys

import numpy as np
import pytest
import torch
from places import ROOT
from safetensors.torch import load_file, save_file

from diffast import digits
from diffast.digits import quality
from diffast.digits.unet import noise_features, parameter_count, scalings

REPOSITORY = ROOT


@pytest.fixture(scope="module")
def unet():
    return digits.load_unet()


@pytest.fixture(scope="module")
def classifier():
    return digits.load_classifier()


@pytest.fixture(scope="module")
def judge():
    return digits.load_judge()


@pytest.fixture(scope="module")
def trainer():
    path = REPOSITORY / "examples" / "train_mnist.py"
    spec = importlib.util.spec_from_file_location("train_mnist", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def drawn(unet):
    """Fifty digits drawn by 16 Euler steps of the probability-flow ODE, five a class."""
    labels = torch.arange(50) % 10
    ends = (20 ** (1 / 7), 0.02 ** (1 / 7))
    sigma = torch.cat([torch.linspace(*ends, 16) ** 7, torch.zeros(1)])
    x = sigma[0] * torch.randn(50, 1, 28, 28, generator=torch.Generator().manual_seed(5))
    for now, then in zip(sigma[:-1], sigma[1:], strict=True):
        x0 = unet(x, now.expand(50), labels)
        x = x0 + then / now * (x - x0)
    return x, labels


def noisy(batch, dtype=torch.float32):
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 1, 28, 28, generator=generator).to(dtype)
    t = torch.linspace(0.05, 5.0, batch).to(dtype)
    return x, t, torch.arange(batch) % 11


# --- networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_shapes(unet, classifier, judge, batch):
    x, t, labels = noisy(batch)
    assert unet(x, t, labels).shape == (batch, 1, 28, 28)
    assert classifier(x, t).shape == (batch, 10)
    assert judge(x).shape == (batch, 10)
    assert judge.features(x).shape == (batch, 64)


def test_parameter_counts(unet, classifier, judge):
    assert 1_000_000 < parameter_count(unet) < 2_000_000
    assert 100_000 < parameter_count(classifier) < 200_000
    assert parameter_count(judge) < 200_000


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-4), (torch.bfloat16, 0.15), (torch.float16, 0.02)],
)
def test_dtypes_agree(dtype, tolerance):
    x, t, labels = noisy(4)
    x, t = x.to(dtype), t.to(dtype)
    unet = digits.load_unet()
    want = unet(x.float(), t.float(), labels)
    got = unet.to(dtype)(x, t, labels)
    assert got.dtype == dtype
    assert (got.double() - want.double()).abs().max() < tolerance
    logits = digits.load_classifier().to(dtype)(x, t)
    assert logits.dtype == dtype
    assert logits.isfinite().all()


def test_float32_weights_take_other_images(unet):
    x, t, labels = noisy(2, torch.float64)
    assert unet(x, t, labels).dtype == torch.float64
    assert unet(x.half(), t, labels).dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sigma", [0.0, 1e-6, 1e4])
def test_extreme_noise_is_finite(dtype, sigma):
    x, _, labels = noisy(3, dtype)
    x = x * max(sigma, 1.0)
    t = torch.full((3,), sigma, dtype=dtype)
    got = digits.load_unet().to(dtype)(x, t, labels)
    assert got.isfinite().all()
    assert got.abs().max() < 6
    assert digits.load_classifier().to(dtype)(x, t).isfinite().all()


def test_no_noise_leaves_the_image(unet):
    x, _, labels = noisy(3)
    torch.testing.assert_close(unet(x, torch.zeros(3), labels), x, rtol=0, atol=1e-6)


def test_images_of_a_batch_do_not_mix(unet):
    x, t, labels = noisy(5)
    whole = unet(x, t, labels)
    one = unet(x[3:4], t[3:4], labels[3:4])
    torch.testing.assert_close(whole[3:4], one, rtol=0, atol=1e-5)


def test_labels_matter_and_null_is_another(unet):
    x = 3 * torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    x = x.expand(11, -1, -1, -1)
    answers = unet(x, torch.full((11,), 3.0), torch.arange(11)).flatten(1)
    apart = torch.cdist(answers, answers) + 1e9 * torch.eye(11)
    assert apart.min() > 0.5
    # The null answer is a mean over the classes: nearer to the classes' mean than any class is.
    centre = answers[:10].mean(dim=0)
    far = (answers - centre).norm(dim=1)
    assert far[digits.NULL_LABEL] < far[:10].mean()


def test_denoises_better_than_the_mean(unet, drawn):
    x0, labels = drawn
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    errors = []
    for sigma in (0.1, 0.5, 2.0):
        t = torch.full((len(x0),), sigma)
        errors.append((unet(x0 + sigma * noise, t, labels) - x0).square().mean().item())
    assert errors[0] < 0.1**2 and errors[1] < 0.5**2 / 5 and errors[2] < x0.var().item() / 2
    assert errors == sorted(errors)


def test_scalings_against_the_formulas():
    sigma = torch.tensor([0.0, 0.3, 7.0], dtype=torch.float64)
    c_skip, c_out, c_in = scalings(sigma, 0.5)
    torch.testing.assert_close(c_skip, 0.25 / (sigma**2 + 0.25))
    torch.testing.assert_close(c_out, sigma * 0.5 / (sigma**2 + 0.25).sqrt())
    torch.testing.assert_close(c_in, 1 / (sigma**2 + 0.25).sqrt())


def test_noise_features_hold_beyond_the_ends():
    features = noise_features(torch.tensor([0.0, 0.002, 1.0, 80.0, 1e6]), 16)
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[3], features[4])
    assert (features[1] - features[2]).abs().max() > 0.5


def test_networks_need_no_gradient_but_pass_it(unet, classifier):
    x, t, labels = noisy(2)
    x.requires_grad_(True)
    log_probability = classifier(x, t).log_softmax(dim=1)[:, 3].sum()
    (slope,) = torch.autograd.grad(log_probability, x)
    assert slope.isfinite().all() and slope.abs().max() > 0
    (slope,) = torch.autograd.grad(unet(x, t, labels).sum(), x)
    assert slope.isfinite().all()
    assert not any(p.requires_grad for p in unet.parameters())
    assert not unet.training and not classifier.training


def test_classifier_gradient_is_the_slope(classifier):
    network = digits.load_classifier().double()
    x, t, _ = noisy(3, torch.float64)
    x.requires_grad_(True)
    (slope,) = torch.autograd.grad(network(x, t).log_softmax(dim=1)[:, 7].sum(), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        ends = [network(x + s * direction, t).log_softmax(dim=1)[:, 7].sum() for s in (1e-5, -1e-5)]
    assert (slope * direction).sum().item() == pytest.approx(
        (ends[0] - ends[1]).item() / 2e-5, rel=1e-5
    )


@pytest.mark.parametrize(
    ("x", "t", "labels"),
    [((2, 28, 28), 2, 2), ((2, 1, 14, 14), 2, 2), ((2, 1, 28, 28), 1, 2), ((2, 1, 28, 28), 2, 3)],
)
def test_wrong_shapes(unet, x, t, labels):
    with pytest.raises(ValueError, match="DigitUNet"):
        unet(torch.zeros(x), torch.ones(t), torch.zeros(labels, dtype=torch.long))


def test_wrong_shapes_of_classifiers(classifier, judge):
    with pytest.raises(ValueError, match="t is"):
        classifier(torch.zeros(2, 1, 28, 28), torch.ones(3))
    with pytest.raises(ValueError, match="DigitJudge: x is"):
        judge(torch.zeros(2, 28, 28))


# --- loaders ------------------------------------------------------------------------------------


def test_loading_draws_no_random_numbers():
    torch.manual_seed(3)
    want = torch.rand(4)
    torch.manual_seed(3)
    digits.load_unet()
    assert torch.equal(torch.rand(4), want)


def test_missing_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="DigitUNet: no weights at .*nowhere"):
        digits.load_unet(tmp_path / "nowhere.safetensors")


def test_weights_of_another_network():
    with pytest.raises(ValueError, match="DigitJudge: .* holds NoisyDigitClassifier"):
        digits.load_judge(digits.WEIGHTS / "classifier.safetensors")


def test_weights_that_are_no_safetensors(tmp_path):
    path = tmp_path / "judge.safetensors"
    path.write_bytes(b"not a header at all")
    with pytest.raises(ValueError, match="not a safetensors file"):
        digits.load_judge(path)


@pytest.mark.parametrize(
    "config",
    [
        *(None, "{", "[]", '{"width": 3}', '{"features": 32}', '{"widths": [1]}'),
        *("[" * 100_000, '{"features": 100000000}', '{"features": 1e999}'),
    ],
    ids=range(9),
)
def test_weights_that_do_not_fit(tmp_path, config):
    state = load_file(digits.WEIGHTS / "judge.safetensors")
    metadata = {"kind": "DigitJudge"} | ({} if config is None else {"config": config})
    path = tmp_path / "judge.safetensors"
    save_file(state, path, metadata)
    with pytest.raises(ValueError, match="does not fit"):
        digits.load_judge(path)


def test_weights_with_a_tensor_missing(tmp_path):
    state = load_file(digits.WEIGHTS / "judge.safetensors")
    del state["head.bias"]
    path = tmp_path / "judge.safetensors"
    save_file(state, path, {"kind": "DigitJudge", "config": "{}"})
    with pytest.raises(ValueError, match=r"does not fit \(.*head\.bias"):
        digits.load_judge(path)


# --- quality ------------------------------------------------------------------------------------


def exact_gaussian(mean, covariance, rows, seed):
    """Rows whose sample mean and covariance are exactly those given."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, len(mean), generator=generator, dtype=torch.float64)
    z = z - z.mean(dim=0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / (rows - 1))).T
    return z @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_of_identical_sets():
    rows = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    assert quality.frechet_distance(rows, rows.clone()) < 1e-10
    assert quality.frechet_distance(rows, rows.flip(0)) < 1e-10


def test_frechet_of_commuting_gaussians():
    mean_a = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    mean_b = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)
    var_a = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    var_b = torch.tensor([1.0, 9.0, 0.25], dtype=torch.float64)
    a = exact_gaussian(mean_a, var_a.diag(), 300, 1)
    b = exact_gaussian(mean_b, var_b.diag(), 500, 2)
    # |(1, -3, 0)|^2 + (2 - 1)^2 + (1 - 3)^2 + 0
    assert quality.frechet_distance(a, b) == pytest.approx(10 + 1 + 4, rel=1e-10)


def test_frechet_of_gaussians_that_do_not_commute():
    # det and trace give the square root of a 2x2 product in closed form:
    # tr (AB)^(1/2) = (tr AB + 2 sqrt(det AB))^(1/2).
    cov_a = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    cov_b = torch.tensor([[1.0, -0.5], [-0.5, 3.0]], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    product = cov_a @ cov_b
    root = (product.trace() + 2 * torch.linalg.det(product).sqrt()).sqrt()
    want = (cov_a.trace() + cov_b.trace() - 2 * root).item()
    a, b = exact_gaussian(zero, cov_a, 100, 3), exact_gaussian(zero, cov_b, 100, 4)
    assert quality.frechet_distance(a, b) == pytest.approx(want, rel=1e-10)
    assert quality.frechet_distance(b, a) == pytest.approx(want, rel=1e-10)


def test_frechet_of_flat_features():
    """A feature that never moves (a dead unit) is no reason to fail."""
    rows = torch.randn(100, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[:, 2] = 1.0
    moved = rows.clone()
    moved[:, 2] = 3.0
    assert quality.frechet_distance(rows, moved) == pytest.approx(4.0, rel=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(9), torch.zeros(9, 3), r"a is \[9\]"),
        (torch.zeros(9, 3), torch.zeros(9, 4), "a has 3 features but b has 4"),
        (torch.rand(9, 3), torch.rand(3, 3), "b has 3 rows of 3"),
        (torch.rand(9, 3), torch.rand(9, 3).fill_(math.nan), "b holds values"),
        (torch.rand(9, 3).fill_(math.inf), torch.rand(9, 3), "a holds values"),
    ],
)
def test_frechet_errors(a, b, message):
    with pytest.raises(ValueError, match=message):
        quality.frechet_distance(a, b)


def test_judge_knows_a_one_and_a_nought(judge):
    row, column = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    one = (column - 13.5).abs() < 1.6
    radius = (((row - 13.5) / 9) ** 2 + ((column - 13.5) / 6.5) ** 2).sqrt()
    images = torch.stack([one & (row >= 4) & (row < 24), (radius - 1).abs() < 0.2])
    images = images.float()[:, None] * 2 - 1
    assert judge(images).argmax(dim=1).tolist() == [1, 0]
    assert quality.class_accuracy(judge, images, torch.tensor([1, 7])) == 0.5


def test_drawn_digits_are_what_was_asked_for(judge, classifier, drawn):
    x, labels = drawn
    assert quality.class_accuracy(judge, x, labels) >= 0.9
    for sigma in (0.0, 0.3):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(8))
        seen = classifier(x + sigma * noise, torch.full((len(x),), sigma)).argmax(dim=1)
        assert (seen == labels).double().mean() >= 0.9


def test_measure(judge, drawn):
    x, labels = drawn
    x = torch.cat([x, x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))])
    labels = labels.repeat(2)
    result = quality.measure(judge, x, labels, x)
    assert set(result) == {"frechet", "accuracy", "confidence"}
    assert result["frechet"] < 1e-6
    assert result["accuracy"] == quality.class_accuracy(judge, x, labels)
    assert 0.8 < result["confidence"] <= 1
    blank = quality.measure(judge, x.roll(14, 3), labels, x)
    assert blank["frechet"] > 100 * result["frechet"] and blank["accuracy"] < result["accuracy"]


def test_measure_errors(judge):
    images = torch.zeros(3, 1, 28, 28)
    with pytest.raises(ValueError, match="3 images but labels is"):
        quality.measure(judge, images, torch.zeros(2, dtype=torch.long), images)
    with pytest.raises(ValueError, match="no images"):
        quality.class_accuracy(judge, images[:0], torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="3 rows of 64"):
        quality.measure(judge, images, torch.zeros(3, dtype=torch.long), images)


# --- the training program -----------------------------------------------------------------------


def write_digits(path, count=200, **change):
    generator = np.random.default_rng(0)
    arrays = {
        "images": generator.integers(0, 256, (count, 28, 28), dtype=np.uint8),
        "labels": generator.integers(0, 10, count, dtype=np.uint8),
    } | change
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def arguments(kind, data, out, images, *more):
    common = ["--holdout", "20", "--threads", "2", "--every", "1"]
    return [kind, "--data", str(data), "--out", str(out), "--images", str(images), *common, *more]


@pytest.mark.parametrize("kind", ["unet", "classifier", "judge"])
def test_training_writes_what_the_package_loads(trainer, tmp_path, kind):
    data = write_digits(tmp_path / "d.npz")
    batch = trainer.RECIPES[kind].batch
    assert trainer.main(arguments(kind, data, tmp_path, batch)) == 0
    load = getattr(digits, f"load_{kind}")
    network = load(tmp_path / f"{kind}.safetensors")
    assert parameter_count(network) == parameter_count(load())
    log = json.loads((tmp_path / "log.json").read_text())
    assert [entry["images"] for entry in log] == [batch]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("kind", ["classifier", "judge"])
def test_resuming_changes_nothing(trainer, tmp_path, monkeypatch, kind):
    data = write_digits(tmp_path / "d.npz")
    recipe = trainer.RECIPES[kind]
    calls = []

    def stopping(*args):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return recipe.loss(*args)

    images = 4 * recipe.batch
    assert trainer.main(arguments(kind, data, tmp_path / "straight", images)) == 0
    monkeypatch.setitem(
        trainer.RECIPES, kind, trainer.Recipe(**(vars(recipe) | {"loss": stopping}))
    )
    command = arguments(kind, data, tmp_path / "halted", images, "--save-minutes", "0")
    with pytest.raises(KeyboardInterrupt):
        trainer.main(command)
    assert trainer.main([*command, "--resume"]) == 0
    straight = load_file(tmp_path / "straight" / "checkpoint.safetensors")
    halted = load_file(tmp_path / "halted" / "checkpoint.safetensors")
    assert straight.keys() == halted.keys()
    assert all(torch.equal(straight[key], halted[key]) for key in straight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "no array named labels"),
        ({"images": None, "labels": None}, "no array named images or labels"),
        ({"images": np.zeros((200, 28, 28))}, "images is float64"),
        ({"images": np.zeros((200, 32, 32), np.uint8)}, r"not \[N, 28, 28\]"),
        ({"labels": np.zeros(7, np.uint8)}, "200 images but labels is"),
        ({"labels": np.full(200, 11, np.uint8)}, "label 11"),
    ],
)
def test_bad_data(trainer, tmp_path, capsys, change, message):
    data = write_digits(tmp_path / "d.npz", **change)
    assert trainer.main(arguments("judge", data, tmp_path, 64)) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    with pytest.raises(trainer.TrainingError, match=message):
        trainer.read_digits(data, 20)


def test_data_that_cannot_be_read(trainer, tmp_path):
    with pytest.raises(trainer.TrainingError, match="no such file"):
        trainer.read_digits(tmp_path / "nowhere.npz", 20)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(trainer.TrainingError, match="not a readable npz"):
        trainer.read_digits(tmp_path / "text.npz", 20)
    with pytest.raises(trainer.TrainingError, match="cannot hold out 200 of 200"):
        trainer.read_digits(write_digits(tmp_path / "d.npz"), 200)


def test_nan_stops_training(trainer, tmp_path, monkeypatch):
    data = write_digits(tmp_path / "d.npz")
    recipe = trainer.RECIPES["judge"]

    def spoilt(*args):
        return recipe.loss(*args) * math.nan

    changed = trainer.Recipe(**(vars(recipe) | {"loss": spoilt}))
    monkeypatch.setitem(trainer.RECIPES, "judge", changed)
    args = trainer.parse(arguments("judge", data, tmp_path / "out", 64))
    with pytest.raises(trainer.TrainingError, match="step 0: loss nan"):
        trainer.train(args)


def test_resuming_without_a_checkpoint(trainer, tmp_path):
    data = write_digits(tmp_path / "d.npz")
    args = trainer.parse(arguments("judge", data, tmp_path / "out", 64, "--resume"))
    with pytest.raises(trainer.TrainingError, match="cannot resume"):
        trainer.train(args)


def test_learning_rate(trainer):
    rates = [trainer.learning_rate(1.0, step, step / 10_000) for step in range(10_001)]
    assert rates[0] < 0.01 and max(rates) > 0.99 and rates[-1] < 0.01
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_noise_levels_cover_the_range(trainer):
    sigma = trainer.draw_sigma(20_000, torch.Generator().manual_seed(0))
    assert sigma.min() >= 0.0019 and sigma.max() <= 80.1
    for low, high in ((0.002, 0.02), (0.02, 0.1), (0.1, 1.0), (1.0, 5.0), (5.0, 80.0)):
        assert ((sigma >= low) & (sigma < high)).double().mean() > 0.02
    assert trainer.fixed_sigma(999).median() == pytest.approx(math.exp(-0.6), rel=1e-3)
