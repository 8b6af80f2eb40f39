"""Search spaces: what they suggest, and the sentence for everything that is wrong with one."""

from __future__ import annotations

import optuna
import pytest
import yaml

from facerec.config.recipe import validate
from facerec.errors import InputError
from facerec.sweep.space import METRICS, Constraint, differences
from facerec.sweep.space_yaml import parse_space, read_space
from facerec.training.settings import TrainSettings
from tests.helpers import PROJECT

optuna.logging.set_verbosity(optuna.logging.ERROR)


def space(text: str):
    return parse_space(yaml.safe_load(text), TrainSettings)


@pytest.mark.parametrize("path", sorted((PROJECT / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_space_of_the_project_suggests_settings_that_train_takes(path):
    found = read_space(str(path), TrainSettings)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        chosen = found.suggest(study.ask())
        settings = validate(TrainSettings, {**found.fixed, **chosen})
        assert all(getattr(settings, name) == value for name, value in chosen.items())


def test_conditions_switch_a_parameter_on_and_off_and_never_change_its_choices():
    found = space(
        """
        parameters:
          margin_a: {setting: margin, float: [0.1, 0.2], when: {loss: arcface}}
          margin_t: {setting: margin, float: [0.5, 0.6], when: {loss: [triplet]}}
          loss: {categorical: [triplet, arcface, supcon]}
        fixed: {miner: none}
        """
    )
    assert found.conditional and found.parameters[0].name == "loss"
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = set()
    for _ in range(40):
        trial = study.ask()
        chosen = found.suggest(trial)
        seen.add(chosen["loss"])
        low, high = {"triplet": (0.5, 0.6), "arcface": (0.1, 0.2)}.get(chosen["loss"], (None, None))
        assert ("margin" in chosen) == (low is not None)
        assert low is None or low <= chosen["margin"] <= high
        assert found.settings(trial.params) == chosen
    assert seen == {"triplet", "arcface", "supcon"}
    for name in ("margin_a", "margin_t"):
        kinds = {str(t.distributions[name]) for t in study.get_trials() if name in t.distributions}
        assert len(kinds) == 1


def test_values_have_the_type_of_the_setting():
    found = space("parameters: {lr: {float: [1e-4, 1e-2], log: true}, depth: {int: [1, 3]}}")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    values = [found.suggest(study.ask()) for _ in range(200)]
    assert {type(v["depth"]) for v in values} == {int} and {v["depth"] for v in values} == {1, 2, 3}
    below = sum(v["lr"] < 1e-3 for v in values)
    assert 70 < below < 130  # log: half of the draws below the geometric mean
    assert space("parameters: {patch_size: {categorical: ['8', 16]}}").parameters[0].values == (
        8,
        16,
    )


def test_truth_values_and_conditions_have_the_type_of_the_setting_too(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(
        """
        parameters:
          confusable: {categorical: [yes, "off"]}
          margin: {categorical: [none, 0.1]}
          lr: {float: [1e-4, 1e-2], log: on, when: {confusable: true, margin: [none]}}
        fixed: {system_metrics: no, epochs: 3}
        """
    )
    found = read_space(str(file), TrainSettings)
    confusable, margin, lr = found.parameters
    assert confusable.values == (True, False) and margin.values == (None, 0.1)
    assert lr.log is True and lr.when == {"confusable": (True,), "margin": (None,)}
    assert found.fixed == {"system_metrics": False, "epochs": 3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("parameters: {patchsize: {categorical: [8]}}", "did you mean 'patch_size'"),
        ("parmeters: {}", "did you mean 'parameters'"),
        ("parameters: {lr: {flaot: [0.1, 0.2]}}", "did you mean 'float'"),
        ("parameters: {lr: {float: [0.1, 20]}}", "lr=20"),
        ("parameters: {lr: {float: [0.1, banana]}}", "banana is no number"),
        ("parameters: {lr: {float: [0.2, 0.1]}}", "low below high"),
        ("parameters: {lr: {float: [0.1]}}", "[low, high]"),
        ("parameters: {lr: {float: [0.1, 1], int: [1, 2]}}", "exactly one"),
        ("parameters: {warmup_epochs: {float: [0, 1], log: true}}", "above 0"),
        ("parameters: {lr: {float: [0.1, 1], log: maybe}}", "true or false"),
        ("parameters: {lr: {float: [false, true]}}", "false is no number"),
        ("parameters: {depth: {int: [01, 3]}}", "leading zero"),
        ("parameters: {depth: {int: [1, 1:30]}}", "1:30 is no number"),
        ("parameters: {lr: {float: [0.1, 1]}}\nfixed: {flip: yes}", "flip=yes"),
        ("parameters: {lr: {float: [0.1, 1]}}\nconstraints: {parameters: {at_most: true}}", "true is no number"),
        ("parameters: {depth: {int: [1.5, 3]}}", "no whole number"),
        ("parameters: {patch_size: {categorical: [7]}}", "patch_size=7"),
        ("parameters: {patch_size: {categorical: [8, 8]}}", "listed twice"),
        ("parameters: {patch_size: {categorical: [8], log: true}}", "belong to float"),
        ("parameters: {output: {categorical: [a]}}", "cannot be searched"),
        ("parameters: {}", "no parameters"),
        ("parameters: 3", "must be a list"),
        ("[1, 2]", "must be a list"),
        ("parameters: {lr: {float: [0.1, 1]}}\nfixed: {lr: 1}", "both searched and fixed"),
        ("parameters: {lr: {float: [0.1, 1]}}\nfixed: {epocs: 1}", "did you mean 'epochs'"),
        ("parameters: {lr: {float: [0.1, 1]}}\nfixed: {epochs: many}", "epochs=many"),
        ("parameters: {lr: {float: [0.1, 1]}}\nobjective: val/map_at_k", "did you mean 'val/map_at_r'"),
        ("parameters: {lr: {float: [0.1, 1]}}\nobjective: [parameters, parameters]", "the same"),
        ("parameters: {lr: {float: [0.1, 1]}}\nobjective: {maximise: parameters}", "'maximize'"),
        ("parameters: {lr: {float: [0.1, 1]}}\nsampler: tpee", "did you mean 'tpe'"),
        ("parameters: {lr: {float: [0.1, 1]}}\npruner: medain", "did you mean 'median'"),
        ("parameters: {lr: {float: [0.1, 1]}}\nconstraints: {parameters: {atmost: 1}}", "did you mean 'at_most'"),
        ("parameters: {lr: {float: [0.1, 1], when: {los: triplet}}}", "'los'"),
        ("parameters: {lr: {float: [0.1, 1], when: {loss: cosine}}, loss: {categorical: [triplet]}}", "never cosine"),
        ("parameters: {lr: {float: [0.1, 1], when: {lr: 1}}}", "circle"),
        (
            "parameters: {a: {setting: lr, float: [0.1, 1]}, b: {setting: lr, float: [0.1, 1]}}",
            "can both set lr",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(text, said, tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_space(str(file), TrainSettings)
    assert said in str(caught.value) and str(caught.value).startswith(f"space {file}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_space(str(tmp_path / "none.yaml"), TrainSettings)
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        read_space(str(tmp_path / "bad.yaml"), TrainSettings)


def test_objectives_constraints_and_pruners():
    two = space(
        "parameters: {lr: {float: [0.1, 1]}}\n"
        "objective: [val/map_at_r, {minimize: parameters}]\n"
        "constraints: {train/images_per_second: {at_least: 1e2}, parameters: {at_most: 2e6}}"
    )
    assert two.objectives == {"val/map_at_r": "maximize", "parameters": "minimize"}
    assert two.constraints[0] == Constraint("train/images_per_second", "at_least", 100)
    assert two.constraints[0].excess(80) == 20 and two.constraints[1].excess(1e6) == -1e6
    assert two.pruner_name(None) == "none"
    with pytest.raises(InputError, match="one objective"):
        two.pruner_name("median")
    one = space("parameters: {lr: {float: [0.1, 1]}}")
    assert list(one.objectives) == ["val/map_at_r"] and one.pruner_name(None) == "median"
    assert one.pruner_name("hyperband") == "hyperband" and one.sampler == "tpe"
    assert set(METRICS) >= set(two.objectives)


def test_what_differs_between_two_spaces_is_named():
    before = space("parameters: {lr: {float: [0.1, 1]}, depth: {int: [1, 3]}}").described()
    now = space("parameters: {lr: {float: [0.1, 2]}, d_model: {int: [8, 16]}}").described()
    told = differences(before, now)
    assert "parameters.lr.values [0.1, 2.0] was [0.1, 1.0]" in told
    assert {"parameters.d_model is new", "parameters.depth is missing"} < set(told)
    assert not differences(now, now)
