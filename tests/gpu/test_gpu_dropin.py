"""Drop-in schedulers and the stepper on a CUDA device: no waits, the CPU's numbers."""

import pytest
import torch

import diffast as df

pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

from diffusers_cases import ONE_OF_EACH  # noqa: E402
from diffusers_loop import difference, model_input, network, noisy, step_options  # noqa: E402


@pytest.fixture
def no_waits():
    """Makes any wait for the device an error."""

    def start():
        torch.cuda.set_sync_debug_mode("error")

    yield start
    torch.cuda.set_sync_debug_mode("default")


def run(case, device, start=lambda: None):
    scheduler = case.drop_in("counter")
    scheduler.set_timesteps(8, device=device, **case.timing)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    torch.manual_seed(1)
    x = noisy(scheduler, case.shape).to(device)
    generator = torch.Generator(device).manual_seed(4)
    options = {**step_options(case, scheduler)}
    if "generator" in options:
        options["generator"] = generator
    for t in scheduler.timesteps:
        out = network(model_input(scheduler, x, t), t, case.learned)
        start()
        x = scheduler.step(out, t, x, **options, return_dict=False)[0]
        torch.cuda.set_sync_debug_mode("default")
    return x


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.id)
def test_steps_do_not_wait(case, no_waits):
    torch.manual_seed(1)
    here, there = run(case, "cpu"), run(case, "cuda", no_waits).cpu()
    # the fake network is torch's, whose sums differ between devices; the steps add the same bits
    assert difference(there, here) <= 1e-4


def test_stepper_does_not_wait(no_waits):
    schedule = df.schedules.edm()
    plans = [
        df.solvers.heun(schedule, df.grids.karras(schedule, 5)),
        df.solvers.dpmpp_2m(schedule, df.grids.karras(schedule, 9)),
        df.solvers.dpmpp_2m_sde(schedule, df.grids.karras(schedule, 7)),
    ]
    reads = df.Prediction(schedule, predicts="x0")
    results = {}
    for device in ("cpu", "cuda"):
        stepper = df.Stepper([(plan, reads) for plan in plans], device=device)
        x = 80.0 * torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        state, x, t = stepper.start(x.to(device), plan=[0, 1, 2, 2, 1, 0], seed=5)
        outputs = [
            0.1 * torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(i))
            for i in range(9)
        ]
        outputs = [output.to(device) for output in outputs]
        stepper.table()
        if device == "cuda":
            no_waits()
        for output in outputs:
            state, x, t = stepper.step(state, output)
        torch.cuda.set_sync_debug_mode("default")
        results[device] = state.x.cpu()
        assert bool(stepper.done(state).all())
    assert torch.equal(results["cpu"], results["cuda"])
