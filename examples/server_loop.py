"""A server's loop: requests join a running batch and leave it when they are done.

    python examples/server_loop.py

Every request has its own number of steps, its own solver, label and seed. The loop makes one
network call for all samples in the batch, whatever step each stands at. A sample's picture does not
depend on who shared its batch.
"""

import torch

import diffast as df

# 1. The network and the plans that requests may choose from, made once.
network, schedule = df.digits.load_unet(), df.schedules.edm()
prediction = df.Prediction(schedule, predicts="x0")  # what the network's output means
plans = {
    "fast": df.solvers.dpmpp_2m(schedule, df.grids.karras(schedule, 6)),
    "fine": df.solvers.dpmpp_2m(schedule, df.grids.karras(schedule, 12)),
    "stochastic": df.solvers.euler_ancestral(schedule, df.grids.karras(schedule, 9)),
}
stepper = df.Stepper([(plan, prediction) for plan in plans.values()])

# 2. The requests: when each arrives (in calls of the loop), its plan, its digit, its id.
requests = [
    (0, "fine", 3, 100),
    (0, "fast", 1, 101),
    (2, "stochastic", 4, 102),
    (5, "fast", 1, 103),
    (20, "fast", 5, 104),
]


def enter(name, request):
    """Returns the state of one new sample: its noise is fixed by its id alone."""
    ids = torch.tensor([request])
    noise = df.ops.normal((1, 1, 28, 28), seed=0, stage=df.ops.INITIAL_NOISE, ids=ids)
    sigma = float(schedule.sigma(plans[name].start))
    start, _, _ = stepper.start(sigma * noise, plan=[list(plans).index(name)], seed=0, ids=ids)
    return start


# 3. The loop. `state` holds the samples in the batch, `labels` goes with it.
state, labels, finished = None, torch.zeros(0, dtype=torch.int64), {}
calls = rows = clock = 0
waiting = list(requests)
with torch.inference_mode():
    while waiting or state is not None:
        # Who has arrived joins.
        while waiting and waiting[0][0] <= clock:
            _, name, digit, request = waiting.pop(0)
            new = enter(name, request)
            state = new if state is None else stepper.join(state, new)
            labels = torch.cat([labels, torch.tensor([digit])])
        if state is not None:
            # One network call for all of them, each at its own time.
            output = network(state.x, stepper.time(state), labels=labels)
            state, _, _ = stepper.step(state, output)
            calls, rows = calls + 1, rows + len(labels)
            # Who is done leaves.
            done = stepper.done(state)
            for request, picture in zip(state.ids[done].tolist(), state.x[done], strict=True):
                finished[request] = (picture, clock)
            state, labels = stepper.select(state, ~done), labels[~done]
            if not len(labels):
                state = None
        clock += 1

# 4. Where a GPU exists and requests come in full batches of one plan, the whole run, network
#    included, is one CUDA graph: captured once, replayed for other ids and labels.
if torch.cuda.is_available():
    on_gpu, digits = df.digits.load_unet().cuda(), torch.tensor([r[2] for r in requests]).cuda()
    given = df.Denoiser(on_gpu, schedule, predicts="x0", conditions={"labels": digits})
    sampler = df.GraphSampler(given, plans["fine"], (len(requests), 1, 28, 28))
    batch = sampler(ids=[request[3] for request in requests])
    other = sampler(seed=1, conditions={"labels": digits.flip(0)})
    print(f"{sampler}: {len(batch.x) + len(other.x)} pictures in 2 replays")

# 5. The same pictures, each sampled alone.
worst, alone_calls = 0.0, 0
for _, name, digit, request in requests:
    denoiser = df.Denoiser(
        network, schedule, predicts="x0", conditions={"labels": torch.tensor([digit])}
    )
    alone = df.sample(denoiser, plans[name], (1, 1, 28, 28), seed=0, ids=[request])
    worst = max(worst, float((alone.x[0] - finished[request][0]).abs().max()))
    alone_calls += int(alone.nfe[0])
print(f"{len(finished)} requests: {calls} network calls in the batch, {alone_calls} one by one")
print(f"largest difference of a pixel in [-1, 1] to the request alone: {worst:.1e}")
