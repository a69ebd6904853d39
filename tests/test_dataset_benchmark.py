"""The benchmark of offline data, as far as it takes no time."""

import datasets  # benchmarks/datasets.py


def test_both_contenders_make_offline_updates_of_nets_of_the_same_size():
    models = [make(2 * datasets.EPISODE) for make in (datasets.with_chunks, datasets.without_chunks)]
    sizes = []
    for model in models:
        model.train(1, batch_size=8)
        sizes.append([tuple(parameter.shape) for parameter in model.policy.parameters()])
        assert "train/matching_loss" in model.logger.name_to_value
    assert sizes[0] == sizes[1]
