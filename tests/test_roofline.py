"""The roofline: numbers of one case by hand, and what follows from more of anything."""

from __future__ import annotations

import dataclasses

import pytest

from deft_tsds.roofline import V5E_256, Machine, Sizes, predict

PLAIN = Machine(
    "plain", chips=2, hosts=1, products=1e9, memory=1e9, storage=1e6, host_memory=1e9, far=False, overlaps=False
)


def stages(prediction):
    return {stage.name: stage for stage in prediction.stages}


def test_one_case_by_hand():
    sizes = Sizes(1_000_000, 100, dimensions=10, neighbors=20, item=2, shortlist=1000, near=0.5)
    found = stages(predict(sizes, PLAIN))
    busy = found["search"].busy
    assert busy["storage"] == pytest.approx(20)  # 20 MB at 1 MB/s
    assert busy["host memory"] == pytest.approx(0.16)
    assert busy["products"] == pytest.approx(2 * 100 * 1e6 * 11 / 2e9)
    assert busy["chip memory"] == pytest.approx((40e6 + 11 * 1e8) / 2e9)
    assert busy["between chips"] == 0
    assert found["search"].seconds == pytest.approx(sum(busy.values()))
    assert found["search"].bottleneck == "storage"
    assert found["gather"].busy["storage"] == pytest.approx(0.02)
    assert found["density"].busy["products"] == pytest.approx((4 * 1000 * 4 * 10 + 50_000 + 0.5 * 1e6 * 10) / 2e9)


def test_a_pipeline_takes_as_long_as_its_slowest_part_and_one_block():
    sizes = Sizes(1_000_000_000, 100)
    overlapped = stages(predict(sizes, V5E_256))["search"]
    assert overlapped.bottleneck == "storage"
    blocks = 4 * 384e9 / (32 * 256 * 2**20)
    reading = overlapped.busy["storage"]
    assert reading < overlapped.seconds < reading * (1 + 3 / blocks) + overlapped.busy["between chips"]
    apart = stages(predict(sizes, dataclasses.replace(V5E_256, overlaps=False)))["search"]
    assert apart.seconds == pytest.approx(sum(apart.busy.values()))


def test_more_of_anything_takes_longer_and_the_pool_counts_once():
    sizes = Sizes(150_000_000, 1000)
    base = predict(sizes, V5E_256).seconds
    for change in ({"candidates": 300_000_000}, {"queries": 2000}, {"dimensions": 768}, {"near": 0.1}, {"item": 4}):
        assert predict(dataclasses.replace(sizes, **change), V5E_256).seconds > base
    ten = predict(dataclasses.replace(sizes, candidates=10 * sizes.candidates), V5E_256)
    assert stages(ten)["search"].seconds < 10.01 * stages(predict(sizes, V5E_256))["search"].seconds
    assert stages(ten)["density"].seconds == stages(predict(sizes, V5E_256))["density"].seconds


def test_cost_and_one_chip_for_the_density():
    sizes = Sizes(150_000_000, 1000)
    found = predict(sizes, V5E_256)
    assert found.cost == pytest.approx(found.seconds * 256 * 1.2 / 3600)
    alone = stages(predict(sizes, V5E_256, density_chips=1))["density"]
    assert alone.busy["products"] == pytest.approx(256 * stages(found)["density"].busy["products"])


def test_many_neighbours_are_found_in_float64_where_the_machine_does_that():
    here = dataclasses.replace(PLAIN, double=5e8)
    few, many = (stages(predict(Sizes(1_000_000, 10, neighbors=k), here))["search"].busy for k in (4000, 4001))
    assert many["products"] == pytest.approx(2 * few["products"])
