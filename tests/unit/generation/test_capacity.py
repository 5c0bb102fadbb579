from __future__ import annotations

import pytest

from dat_ray.config.cluster import Pool
from dat_ray.config.schema import Recipe
from dat_ray.errors import DatError
from dat_ray.generation.capacity import Node, check_capacity, generation_pools

POOLS = {"sampler": Pool(), "target": Pool(), "judge": Pool(num_cpus=0.5)}


def test_pools_and_file_tasks_must_fit():
    check_capacity(POOLS, [Node(4.5, 0)], None)
    with pytest.raises(DatError, match=r"asks for 4.5 CPUs and 0 GPUs in all \(sampler 1 x 1 CPU.*there are 4 and 0"):
        check_capacity(POOLS, [Node(4, 0)], None)


def test_the_smallest_pool_counts_not_the_largest():
    check_capacity({"sampler": Pool(min_actors=1, max_actors=64)}, [Node(3, 0)], None)


def test_gpus_are_counted():
    pools = {"sampler": Pool(min_actors=2, max_actors=2, num_gpus=1)}
    check_capacity(pools, [Node(8, 1), Node(8, 1)], None)
    with pytest.raises(DatError, match=r"2 GPUs in all .*there are 8 and 1"):
        check_capacity(pools, [Node(8, 1)], None)


def test_an_actor_must_fit_on_one_node():
    with pytest.raises(DatError, match="one sampler actor asks for 1 CPUs and 2 GPUs on one node"):
        check_capacity({"sampler": Pool(num_gpus=2)}, [Node(8, 1), Node(8, 1)], None)


def test_a_pinned_pool_needs_nodes_with_its_label():
    pools = {"sampler": Pool(subcluster="generation"), "judge": Pool()}
    labeled = Node(2, 0, {"ray-subcluster": "generation"})
    check_capacity(pools, [labeled, Node(4, 0)], None)
    with pytest.raises(DatError, match="want nodes labeled ray-subcluster=generation, and no live node is"):
        check_capacity(pools, [Node(8, 0), Node(8, 0, {"ray-subcluster": "training"})], None)
    wide = {"sampler": Pool(subcluster="generation", min_actors=3, max_actors=3), "judge": Pool()}
    with pytest.raises(DatError, match=r"3 CPUs and 0 GPUs on ray-subcluster=generation .*there are 2"):
        check_capacity(wide, [labeled, Node(8, 0)], None)


def test_with_an_autoscaler_its_ceiling_counts():
    check_capacity({"sampler": Pool(subcluster="generation")}, [Node(1, 0)], {"CPU": 3})
    with pytest.raises(DatError, match="the autoscaler may reach 2 and 0"):
        check_capacity({"sampler": Pool()}, [Node(64, 0)], {"CPU": 2})


@pytest.mark.parametrize(
    ("encoder", "roles"), [(None, {"sampler", "target", "judge"}), ({}, {"sampler", "target", "judge", "encoder"})]
)
def test_generation_runs_an_encoder_where_the_recipe_has_one(encoder, roles):
    tree = {
        "name": "x",
        "behaviors": {"path": "none", "heldout": {"path": "none"}},
        "sampler": {"model": "none"},
        "target": {"model": "none"},
        "training": {"retain": {"path": "none"}},
        "encoder": encoder,
    }
    assert set(generation_pools(Recipe.model_validate(tree))) == roles
