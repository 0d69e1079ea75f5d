"""accelerate finds every scheduler of a pipeline, leaves unknown ones, and puts them all back."""

import copy
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

import diffusers  # noqa: E402
from diffusers_cases import SD  # noqa: E402

from diffast.integrations.diffusers import (  # noqa: E402
    DiffastScheduler,
    PlanScheduler,
    accelerate,
    accelerated,
)


class Inner(diffusers.DiffusionPipeline):
    """A pipeline with two schedulers."""

    def __init__(self, scheduler, low_res_scheduler=None):
        super().__init__()
        self.register_modules(scheduler=scheduler, low_res_scheduler=low_res_scheduler)


class Combined(diffusers.DiffusionPipeline):
    """A pipeline around another one, whose scheduler is also a component of its own."""

    def __init__(self, scheduler, prior_scheduler, decoder_scheduler):
        super().__init__()
        self.register_modules(
            scheduler=scheduler,
            prior_scheduler=prior_scheduler,
            decoder_scheduler=decoder_scheduler,
        )
        self.prior_pipe = Inner(prior_scheduler, diffusers.DDPMScheduler())
        self.decoder_pipe = Inner(decoder_scheduler)
        self.extra = {"later": [diffusers.UniPCMultistepScheduler(), "nothing"]}


class Strange:
    """Somebody's own."""

    def set_timesteps(self, steps):
        self.timesteps = list(range(steps))

    def step(self, output, t, x):
        return x


def combined(decoder=None):
    return Combined(
        diffusers.DDIMScheduler(**SD),
        diffusers.DDPMScheduler(),
        decoder or diffusers.LCMScheduler(),
    )


def everything(pipe):
    inner = (pipe.prior_pipe.scheduler, pipe.prior_pipe.low_res_scheduler)
    own = (pipe.scheduler, pipe.prior_scheduler, pipe.decoder_scheduler)
    return [*own, *inner, pipe.decoder_pipe.scheduler, pipe.extra["later"][0]]


def test_every_scheduler_is_found(capsys):
    pipe = combined()
    before = everything(pipe)
    report = accelerate(pipe)
    assert [isinstance(s, DiffastScheduler) for s in everything(pipe)] == [True] * 4 + [
        False,
        True,
        True,
    ]
    # what was one object is one object
    assert pipe.prior_pipe.scheduler is pipe.prior_scheduler
    assert pipe.decoder_pipe.scheduler is pipe.decoder_scheduler
    assert pipe.components["prior_scheduler"] is pipe.prior_scheduler
    assert (report.before, report.after) == ("DDIMScheduler", "DiffastDDIMScheduler")
    assert report.replaced[0] == ("scheduler", "DDIMScheduler", "DiffastDDIMScheduler")
    assert {place for place, _, _ in report.replaced} == {
        "scheduler",
        "prior_scheduler",
        "decoder_scheduler",
        "prior_pipe.scheduler",
        "decoder_pipe.scheduler",
        "extra['later'][0]",
    }
    (left,) = report.left
    assert left == "prior_pipe.low_res_scheduler: DDPMScheduler is left, as it only adds noise"
    printed = capsys.readouterr().out
    assert "prior_pipe.scheduler: DDPMScheduler -> DiffastDDPMScheduler" in printed
    assert left in printed
    accelerate(pipe, undo=True, quiet=True)
    assert all(now is then for now, then in zip(everything(pipe), before, strict=True))


def test_an_unknown_one_is_left_with_a_line():
    pipe = combined(Strange())
    kept = pipe.decoder_scheduler
    report = accelerate(pipe, quiet=True)
    assert pipe.decoder_scheduler is pipe.decoder_pipe.scheduler is kept
    assert len(report.left) == 3
    assert sum("Strange" in line for line in report.left) == 2
    with pytest.raises(ValueError, match="Strange"):
        accelerate(SimpleNamespace(scheduler=Strange()))
    with pytest.raises(ValueError, match="has no scheduler"):
        accelerate(SimpleNamespace(unet=1))
    with pytest.raises(ValueError, match="only adds noise"):
        accelerate(SimpleNamespace(low_res_scheduler=diffusers.DDPMScheduler()))


def test_a_main_scheduler_that_is_unknown_does_not_keep_the_others():
    pipe = Inner(diffusers.DDIMScheduler())
    pipe.scheduler, pipe.second_scheduler = Strange(), diffusers.DDIMScheduler()
    report = accelerate(pipe, quiet=True)
    assert isinstance(pipe.second_scheduler, DiffastScheduler)
    assert report.replaced == (("second_scheduler", "DDIMScheduler", "DiffastDDIMScheduler"),)


def test_all_or_nothing():
    class Stubborn(Combined):
        def __setattr__(self, name, value):
            if name == "decoder_scheduler" and isinstance(value, DiffastScheduler):
                raise RuntimeError("no")
            super().__setattr__(name, value)

    pipe = Stubborn(diffusers.DDIMScheduler(), diffusers.DDPMScheduler(), diffusers.LCMScheduler())
    before = everything(pipe)
    with pytest.raises(RuntimeError, match="no"):
        accelerate(pipe)
    assert all(now is then for now, then in zip(everything(pipe), before, strict=True))
    with pytest.raises(ValueError, match="nothing of this Stubborn was replaced"):
        accelerate(pipe, undo=True)


@pytest.mark.parametrize("fails", [False, True])
def test_while_a_with_lasts(fails):
    pipe = combined()
    before = everything(pipe)

    def inside():
        with accelerated(pipe) as report:
            assert report.after == "DiffastDDIMScheduler"
            outer = everything(pipe)
            with accelerated(pipe, noise="counter", strict=True):
                assert pipe.scheduler.config.noise == "counter"
                assert pipe.scheduler.config.strict
                accelerate(pipe, quiet=True)  # and nobody undoes this one
            assert all(now is then for now, then in zip(everything(pipe), outer, strict=True))
            if fails:
                raise KeyError("a picture")

    if fails:
        with pytest.raises(KeyError, match="a picture"):
            inside()
    else:
        inside()
    assert all(now is then for now, then in zip(everything(pipe), before, strict=True))
    assert not [name for name in vars(pipe) if "diffast" in name]


def test_undo_leaves_what_was_put_there_since(capsys):
    pipe = combined()
    accelerate(pipe, quiet=True)
    accelerate(pipe, noise="counter", quiet=True)
    pipe.scheduler = new = diffusers.EulerDiscreteScheduler()
    report = accelerate(pipe, undo=True)
    assert pipe.scheduler is new
    assert type(pipe.prior_scheduler) is diffusers.DDPMScheduler
    assert any(line.startswith("scheduler: EulerDiscreteScheduler is left") for line in report.left)
    assert "is left, as other code put it there" in capsys.readouterr().out
    with pytest.raises(ValueError, match="nothing of this Combined was replaced"):
        accelerate(pipe, undo=True)
    for options in ({"noise": "counter"}, {"calls": 4}, {"strict": True}):
        with pytest.raises(TypeError, match="undo=True is given with other options"):
            accelerate(pipe, undo=True, **options)
    with pytest.raises(TypeError, match="undo is given"), accelerated(pipe, undo=True):
        pass


def test_a_copy_of_the_pipeline_undoes_itself():
    pipe = Inner(diffusers.DDIMScheduler())
    accelerate(pipe, quiet=True)
    again = copy.deepcopy(pipe)
    accelerate(again, undo=True, quiet=True)
    assert type(again.scheduler) is diffusers.DDIMScheduler
    assert isinstance(pipe.scheduler, DiffastScheduler)


def test_a_plan_is_for_the_main_scheduler():
    pipe = combined()
    pipe.decoder_pipe.scheduler = pipe.scheduler  # the same object
    before = everything(pipe)
    report = accelerate(pipe, calls=4, quiet=True)
    assert isinstance(pipe.scheduler, PlanScheduler)
    assert pipe.decoder_pipe.scheduler is pipe.scheduler
    assert type(pipe.prior_scheduler).__name__ == "DiffastDDPMScheduler"
    assert report.before == "DDIMScheduler"
    assert report.after.startswith("plan ")
    accelerate(pipe, quiet=True)  # back to the drop-in of the first
    assert type(pipe.scheduler).__name__ == "DiffastDDIMScheduler"
    accelerate(pipe, undo=True, quiet=True)
    assert all(now is then for now, then in zip(everything(pipe), before, strict=True))


def test_saved_and_loaded(tmp_path):
    pipe = Inner(diffusers.DDIMScheduler(**SD))
    accelerate(pipe, quiet=True)
    pipe.scheduler.save_pretrained(tmp_path)
    again = diffusers.DDIMScheduler.from_pretrained(tmp_path)
    assert type(again) is diffusers.DDIMScheduler
    assert torch.equal(again.betas, pipe.scheduler.betas)
