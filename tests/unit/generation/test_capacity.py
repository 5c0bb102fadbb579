from __future__ import annotations

import pytest

from dat_ray.config.cluster import Pool
from dat_ray.config.schema import Recipe
from dat_ray.errors import DatError
from dat_ray.generation.capacity import Node, check_capacity, generation_pools

POOLS = {"sampler": Pool(), "target": Pool(), "judge": Pool(num_cpus=0.5)}


def recipe(**sections: object) -> Recipe:
    tree = {
        "name": "x",
        "behaviors": {"path": "none", "heldout": {"path": "none"}},
        "sampler": {"model": "none"},
        "target": {"model": "none"},
        "training": {"retain": {"path": "none"}},
    }
    return Recipe.model_validate(tree | sections)


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
    labeled = Node(3, 0, {"ray-subcluster": "generation"})
    check_capacity(pools, [labeled, Node(4, 0)], None)
    with pytest.raises(DatError, match="want nodes labeled ray-subcluster=generation, and no live node is"):
        check_capacity(pools, [Node(8, 0), Node(8, 0, {"ray-subcluster": "training"})], None)
    wide = {"sampler": Pool(subcluster="generation", min_actors=2, max_actors=3), "judge": Pool()}
    with pytest.raises(DatError, match=r"4 CPUs and 0 GPUs on ray-subcluster=generation \(.*, file tasks 2 CPU\).* 3 and 0"):
        check_capacity(wide, [labeled, Node(8, 0)], None)


@pytest.mark.parametrize("nodes", [
    # The judge's GPU is on a node that generation's label is not on.
    [Node(8, 2, {"ray-subcluster": "generation"}), Node(8, 1)],
    # Both actors fit, and then nobody reads a file.
    [Node(4, 3, {"ray-subcluster": "generation"}), Node(8, 0)],
])  # fmt: skip
def test_what_names_no_group_is_in_the_samplers(nodes):
    one = {"min_actors": 1, "num_gpus": 1, "num_cpus": 1}
    pinned = {**one, "subcluster": "generation"}
    pools = generation_pools(recipe(cluster={"sampler": pinned, "target": pinned, "judge": one}))
    with pytest.raises(DatError, match=r"asks for 5 CPUs and 3 GPUs on ray-subcluster=generation"):
        check_capacity(pools, nodes, None)
    check_capacity(pools, [Node(5, 3, {"ray-subcluster": "generation"})], None)


def test_with_an_autoscaler_its_ceiling_counts():
    check_capacity({"sampler": Pool(subcluster="generation")}, [Node(1, 0)], {"CPU": 3})
    with pytest.raises(DatError, match="the autoscaler may reach 2 and 0"):
        check_capacity({"sampler": Pool()}, [Node(64, 0)], {"CPU": 2})


@pytest.mark.parametrize(
    ("encoder", "roles"), [(None, {"sampler", "target", "judge"}), ({}, {"sampler", "target", "judge", "encoder"})]
)
def test_generation_runs_an_encoder_where_the_recipe_has_one(encoder, roles):
    assert set(generation_pools(recipe(encoder=encoder))) == roles
