from dat_ray.data.ids import IdPart, row_id, row_ids, seed_from_id, seeds_from_ids


def test_ids_are_stable_across_versions() -> None:
    # sha256 of the canonical JSON, by hand: printf '["a",1,null]' | sha256sum
    assert row_id("a", 1, None) == "0ae764bffd3a17b6"
    assert len(row_id("a")) == 16
    assert row_id("a", "b") != row_id("ab")
    assert row_id("1") != row_id(1)


def test_seeds_are_in_range_and_spread() -> None:
    seeds = [seed_from_id(row_id(i)) for i in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert 400 < sum(seed >= 2**62 for seed in seeds) < 600


def test_many_at_once_are_those_one_by_one() -> None:
    values: list[IdPart] = [
        "plain",
        'with "quotes" \\ and \n',
        "naïve 日本語 \U0001f600",
        "",
        0,
        -1,
        2**70,
        0.1,
        1e-310,
        float("inf"),
        None,
        True,
    ]
    identifiers = row_ids(("a", 1, None), values, ("z",))
    assert identifiers == [row_id("a", 1, None, value, "z") for value in values]
    assert seeds_from_ids(identifiers) == [seed_from_id(identifier) for identifier in identifiers]
    assert all(type(seed) is int for seed in seeds_from_ids(identifiers))
    assert seeds_from_ids([]) == []
