"""What the ops refuse is said in the caller's words: whose tensor it is, and at which stage."""

import pytest
import torch
from test_face import DETERMINISTIC, RUNS, STOCHASTIC, denoiser_of, initial, network, run

import diffast as df

WHO = dict(zip(RUNS, (*RUNS[:3], "Stepper", "Stepper"), strict=True))
OUTPUTS = {
    "meta": (lambda y: y.to("meta"), "is on meta but the state is on cpu"),
    "float8": (lambda y: y.to(torch.float8_e4m3fn), "is torch.float8_e4m3fn but must be one of"),
    "complex": (lambda y: y.to(torch.complex64), "torch.complex64"),
    "none": (lambda y: None, "NoneType"),
    "shape": (lambda y: y[:, :1], r"\[3, 1\]"),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_that_cannot_be_weighed(name, kind):
    change, words = OUTPUTS[kind]
    if name == "sample_parallel":
        words = words.replace("[3, 1", "[27, 1")
    with pytest.raises(ValueError, match=words) as caught:
        run(name, initial(), denoiser_of(lambda x, t: change(network(x, t))))
    text = str(caught.value)
    assert "xs[" not in text and "combine" not in text and "sweep" not in text
    whole = kind in ("meta", "float8")
    assert text.startswith(
        WHO[name] if whole or WHO[name] == "Stepper" else "Denoiser: the network"
    )
    assert ("the network's output" in text) or not whole or WHO[name] == "Stepper"
    if whole and name == "sample":
        assert text.startswith("sample: stage 0: the network's output ")


@pytest.mark.parametrize("method", ["secant", "anderson", "paradigms", "speculative", "prior"])
def test_outputs_of_every_parallel_method(method):
    denoiser = denoiser_of(lambda x, t: network(x, t).to("meta"))
    plan = STOCHASTIC if method in ("speculative", "paradigms") else DETERMINISTIC
    with pytest.raises(ValueError, match="^sample_parallel: round 0: the network's output is on"):
        df.sample_parallel(denoiser, plan, x=initial(), method=method)


def test_a_later_stage_is_named():
    calls = []

    def call(x, t):
        calls.append(t)
        y = network(x, t)
        return y.to("meta") if len(calls) == 4 else y

    with pytest.raises(ValueError, match="^sample: stage 3: the network's output is on meta"):
        run("sample", initial(), denoiser_of(call))
    calls.clear()
    with pytest.raises(ValueError, match="^sample_adaptive: round 3: the network's output is on"):
        run("sample_adaptive", initial(), denoiser_of(call))
    calls.clear()
    with pytest.raises(ValueError, match="^Stepper: stage 3: output is on meta"):
        run("together", initial(), denoiser_of(call))


def test_with_a_clamp_a_hook_and_guidance():
    def call(x, t, c):
        return network(x, t).to("meta")

    c = {"c": torch.zeros(3, 1)}
    guided = denoiser_of(call, conditions=c, unconditional=c, guidance=2.0)
    for options in ({}, {"clamp": (-1, 1)}, {"on_x0": lambda x0, info: x0}):
        for denoiser in (guided, denoiser_of(lambda x, t: network(x, t).to("meta"))):
            for name in ("sample", "sample_adaptive"):
                with pytest.raises(ValueError, match=f"^{name}: .*: the network's output is on"):
                    run(name, initial(), denoiser, **options)


def test_errors_of_the_network_itself_pass_through():
    class Mine(RuntimeError):
        pass

    def call(x, t):
        raise Mine("out of luck")

    for name in RUNS:
        with pytest.raises(Mine, match="out of luck"):
            run(name, initial(), denoiser_of(call))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_given_normals_may_have_another_dtype(dtype):
    z = torch.arange(12.0).reshape(3, 4) / 8 - 0.5  # exact in each
    wanted = df.sample(denoiser_of(), STOCHASTIC, x=initial(), noise=lambda stage: z)
    out = df.sample(denoiser_of(), STOCHASTIC, x=initial(), noise=lambda stage: z.to(dtype))
    assert out.x.dtype == torch.float32
    # a float64 operand makes the kernel sum in float64
    assert (out.x - wanted.x).abs().max() < (1e-6 if dtype == torch.float64 else 1e-30)
    for each in (False, True):
        stepper = df.Stepper(STOCHASTIC, denoiser_of(), noise="given")
        state, x, t = stepper.start(initial(), each=each)
        for _ in range(STOCHASTIC.nfe):
            state, x, t = stepper.step(state, network(x, t), z.to(dtype))
        assert torch.equal(stepper.result(state).x, out.x)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda z: z.to("meta"), "is on meta but the state is on cpu"),
        (lambda z: z.to(torch.complex64), "is torch.complex64 but must be one of float32, float64"),
        (lambda z: z[:1], r"is \[1, 4\] but the state is \[3, 4\]"),
    ],
)
def test_given_normals_that_do_not_fit(change, words):
    z = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=f"^sample: stage 0: what noise returned {words}"):
        df.sample(denoiser_of(), STOCHASTIC, x=initial(), noise=lambda stage: change(z))
    for each in (False, True):
        stepper = df.Stepper(STOCHASTIC, denoiser_of(), noise="given")
        state, x, t = stepper.start(initial(), each=each)
        with pytest.raises(ValueError, match=f"^Stepper: (stage 0: )?z {words}"):
            stepper.step(state, network(x, t), change(z))


@pytest.mark.parametrize("name", ["sample", "sample_adaptive", "together", "each"])
def test_hooks_may_return_another_floating_dtype(name):
    plain = run(name, initial(), on_x0=lambda x0, info: x0)
    wide = run(name, initial(), on_x0=lambda x0, info: x0.double())
    assert wide.x.dtype == torch.float32
    assert torch.equal(wide.x, plain.x)
    half = run(name, initial(), on_x0=lambda x0, info: x0.half())
    assert half.x.dtype == torch.float32 and half.fine.all()
    with pytest.raises(ValueError, match=f"^{WHO[name]}: what on_x0 returned is on meta"):
        run(name, initial(), on_x0=lambda x0, info: x0.to("meta"))
    with pytest.raises(ValueError, match=f"^{WHO[name]}: what on_x0 returned is torch.complex64"):
        run(name, initial(), on_x0=lambda x0, info: x0.to(torch.complex64))
    with pytest.raises(ValueError, match=f"^{WHO[name]}: on_x0 was given .* but returned NoneType"):
        run(name, initial(), on_x0=lambda x0, info: None)


def test_a_stepper_is_for_one_device():
    with pytest.raises(ValueError, match="x is on meta but the stepper is for cpu"):
        df.Stepper(DETERMINISTIC, denoiser_of()).start(initial().to("meta"))
