"""More than 2^31 elements on a GPU: no index is 32 bits wide. Needs 14 GB there, 5 GB here."""

import os

import pytest
import torch
from op_cases import assert_same_bits

from diffast import ops
from diffast.ops.schema import overload_of

MANY = 2**31 + 2**20 + 5
GIB = 2**30


def host_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def many(device):
    """The number of elements: beyond 2^31 on a GPU, few where the test is only tried out."""
    if device.type == "cpu":
        return 2**16 + 5
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    if free < 14 * GIB:
        pytest.skip(f"{free / GIB:.1f} GiB are free on the device but 14 are needed")
    return MANY


def windows(many):
    """Where results are compared: both ends, and around 2^31 and 2^32 bytes."""
    starts = {0, many - 4096, *(n for n in (2**31 - 2048, 2**30 - 2048) if n + 4096 < many)}
    return [slice(start, start + 4096) for start in sorted(starts)]


@pytest.mark.parametrize("form", ["combine.out", "combine.table_out"])
def test_combine(form, many, device):
    x = torch.empty(1, many, dtype=torch.bfloat16, device=device)
    for part in x.view(-1).split(2**28):
        part.copy_(torch.arange(len(part), device=device).remainder_(251).sub_(125))
    out = torch.full_like(x, torch.nan)
    status = torch.full((1,), -1, device=device)
    if form == "combine.out":
        overload_of(form)([x], [0.75], [out], status)
    else:
        table = torch.full((1, 1, 1), 0.75, dtype=torch.float64, device=device)
        streams = torch.zeros(1, 3, dtype=torch.int64, device=device)
        overload_of(form)([x], table, None, streams, [], [out], status)
    for window in windows(many):
        assert_same_bits(out[:, window].cpu(), (x[:, window].float() * 0.75).bfloat16().cpu())
    whole = sum(int(part.isnan().sum()) for part in out.view(-1).split(2**28))
    assert whole == 0 and status.item() == -1


def test_normals(many, device):
    """The counter of an element beyond 2^31 is its own: the bits of the CPU's C++ op."""
    if host_memory() < 6 * GIB and device.type == "cuda":
        pytest.skip(f"{host_memory() / GIB:.1f} GiB of host memory are free but 6 are needed")
    ids = torch.tensor([7])
    wanted = torch.empty(1, many, dtype=torch.bfloat16)
    ops.normal_out(ids, 3, 1 << 28, 1.0, wanted)
    out = torch.empty(1, many, dtype=torch.bfloat16, device=device)
    ops.normal_out(ids.to(device), 3, 1 << 28, 1.0, out)
    for window in windows(many):
        assert_same_bits(out[:, window].cpu(), wanted[:, window], window)


def test_many_samples(device):
    """More samples than a grid's y axis has blocks, more elements in all than 2^31."""
    samples, size = (70_000, 31_000) if device.type == "cuda" else (700, 31)
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 10 * GIB:
        pytest.skip("10 GiB are needed on the device")
    x = torch.ones(samples, size, dtype=torch.bfloat16, device=device)
    out = torch.full_like(x, torch.nan)
    table = torch.arange(samples, dtype=torch.float64, device=device).remainder_(100)
    ops.combine_table_out([x], table.view(-1, 1, 1), None, None, [], [out], None)
    for rows in (slice(0, 300), slice(samples // 2, samples // 2 + 300), slice(-300, None)):
        wanted = table[rows].bfloat16().cpu().view(-1, 1).expand(-1, size)
        assert torch.equal(out[rows].cpu(), wanted)
