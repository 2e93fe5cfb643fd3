import json
import tomllib
from typing import Any

import pytest

from elasticmoe.errors import SpecError
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import job_json_schema, parse_data, parse_json, parse_toml, to_data
from elasticmoe.spec.presets import PRESETS

TEXT = """
version = 1
name = "quickstart"
[model]
preset = "quickstart"
[data]
sources = [{ path = "data/stdlib", weight = 1 }]
seq_len = 256
[batch]
global_samples = 32
num_waves = 4
[optimizer]
learning_rate = 1e-3
[schedule]
steps = 1500
[parallel]
stages = 2
[workers]
replicas = 4
min = 1
max = 8
[storage]
dir = "runs/quickstart"
"""


def problems(text: str, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        parse_toml(text, overrides)
    return caught.value.problems


def test_toml_json_and_python_data_give_the_same_job() -> None:
    data = tomllib.loads(TEXT)

    jobs = [parse_toml(TEXT), parse_json(json.dumps(data)), parse_data(data)]

    assert jobs[0] == jobs[1] == jobs[2]
    assert jobs[0].data.sources[0].weight == 1.0


@pytest.mark.parametrize("preset", PRESETS)
def test_a_job_survives_the_way_to_plain_data_and_back(preset: str) -> None:
    job = parse_toml(TEXT, [f"model.preset={preset}", "protection.skip_rungs=['replace']"])

    data = json.loads(json.dumps(to_data(job)))

    assert parse_data(data) == job


def test_python_tuples_are_lists_too() -> None:
    data = tomllib.loads(TEXT)
    data["optimizer"]["betas"] = (0, 0.99)

    job = parse_data(data)

    assert job.optimizer.betas == (0.0, 0.99)


def test_parsing_leaves_the_given_data_alone() -> None:
    data = tomllib.loads(TEXT)

    parse_data(data, ["model.moe.top_k=2", "data.sources.0.path=elsewhere"])

    assert data == tomllib.loads(TEXT)


def test_fields_beside_a_preset_replace_its_fields_and_keep_its_name() -> None:
    job = parse_toml(TEXT.replace('preset = "quickstart"', 'preset = "quickstart"\nmoe.top_k = 2'))

    assert job.model.preset == "quickstart"
    assert job.model.moe.top_k == 2
    assert job.model.moe.num_experts == 16


def test_a_null_beside_a_preset_clears_its_field() -> None:
    job = parse_toml(TEXT, ["model.preset=deepseek-v3", "model.attention.yarn=none"])

    assert job.model.attention.yarn is None


@pytest.mark.parametrize(
    "override, read",
    [
        ("schedule.steps=7", lambda job: job.schedule.steps == 7),
        ("optimizer.betas=[0.8, 0.9]", lambda job: job.optimizer.betas == (0.8, 0.9)),
        ("optimizer.clip_norm=none", lambda job: job.optimizer.clip_norm is None),
        ("storage.dir=runs/other", lambda job: job.storage.dir == "runs/other"),
        ('storage.dir="7"', lambda job: job.storage.dir == "7"),
        ("storage.dir=2024-01-01", lambda job: job.storage.dir == "2024-01-01"),
        ("storage.dir=a=b", lambda job: job.storage.dir == "a=b"),
        ("data.sources.0.path=x", lambda job: job.data.sources[0].path == "x"),
        ("balance.loss=sequence", lambda job: job.balance.loss == "sequence"),
    ],
)
def test_an_override_sets_one_field(override: str, read: Any) -> None:
    job = parse_toml(TEXT, [override])

    assert read(job)


@pytest.mark.parametrize(
    "override, message",
    [
        ("workers.mim=3", "workers.mim = 3: no such field; did you mean min?"),
        ("redundancy=2", "redundancy = 2: no such field; did you mean protection.redundancy?"),
        ("workers.min=abc", 'workers.min = "abc": must be an integer'),
        ("workers.min=2.5", "workers.min = 2.5: must be an integer"),
        ("workers.min=0", "workers.min = 0: must be at least 1"),
        ("workers.max=2", "[workers] replicas 4 is not in min 1 .. max 2"),
        ("workers=3", "workers = 3: must be a table"),
        ("batch.num_waves='8'", 'batch.num_waves = "8": must be an integer'),
        ("batch.num_waves=5", "[batch] global_samples 32 is not a multiple of num_waves 5"),
        (
            "batch.num_waves=64",
            "[batch] global_samples 32 is fewer than num_waves 64; every wave needs a sample",
        ),
        ("model.moe.top_k=99", "[model.moe] top_k 99 exceeds the 8 experts in top_groups 2 of 4"),
        (
            "optimizer.learning_rate=inf",
            "optimizer.learning_rate = Infinity: must be a finite number",
        ),
        (
            "optimizer.betas=[0.1]",
            "optimizer.betas[1] is missing: optimizer.betas is a longer list",
        ),
        ("optimizer.betas=[0.1,0.2,0.3]", "optimizer.betas = [0.1, 0.2, 0.3]: must have 2 entries"),
        ("optimizer.betas=[1,0.5]", "[optimizer] betas (1.0, 0.5) are not in [0, 1)"),
        (
            "schedule.kind=cosin",
            'schedule.kind = "cosin": must be "cosine", "wsd" or "constant"; did you mean cosine?',
        ),
        ("version=2", "version = 2: must be 1"),
        (
            "name=My Job",
            'name = "My Job": must be 1 to 40 lower-case letters, digits and hyphens, '
            "with a letter or digit at both ends",
        ),
        ("data.sources=[]", "data.sources = []: must not be empty"),
        ("data.sources.0.path=", 'data.sources[0].path = "": must not be empty'),
        (
            "data.sources.0.weigt=2",
            "data.sources[0].weigt = 2: no such field; did you mean weight?",
        ),
        ("data.sources.0.weight=0", "data.sources[0].weight = 0: must be greater than 0.0"),
        ("protection.pinned=1", "protection.pinned = 1: must be true or false"),
        (
            "protection.pinned=false",
            "[protection.pinned] false: sample shares do not follow measured speed yet; "
            "leave it out",
        ),
        ("protection.redundancy=9", "protection.redundancy = 9: must be at most 3"),
        ("protection.skip_rungs=replace", 'protection.skip_rungs = "replace": must be a list'),
        ("storage.dir=3", "storage.dir = 3: must be a string in quotes"),
        (
            "parallel.stages=5",
            "parallel.stages 5 exceeds model.num_layers 3; a stage needs a layer",
        ),
        (
            "model.preset=qickstart",
            'model.preset = "qickstart": no such preset; did you mean quickstart? '
            "There are quickstart, small, mixtral-style, deepseek-v3, olmoe",
        ),
        ("batch", "override 'batch' is not of the form path=value"),
        (
            "workers.min.x=3",
            "override 'workers.min.x=3': workers.min is 1 and has no fields",
        ),
        (
            "data.sources.3.path=x",
            "override 'data.sources.3.path=x': data.sources is a list, and '3' is not "
            "an index below 1",
        ),
    ],
)
def test_a_mistake_gives_one_line_with_field_value_and_remedy(override: str, message: str) -> None:
    assert problems(TEXT, override) == (message,)


def test_a_missing_field_is_named_with_what_it_means() -> None:
    (line,) = problems(TEXT.replace("min = 1\n", ""))

    assert line.startswith("workers.min is missing: with fewer healthy workers the job waits")


def test_a_missing_table_is_named() -> None:
    text = TEXT.replace('[storage]\ndir = "runs/quickstart"', "")

    assert problems(text) == ("[storage] is missing: add the table",)


def test_a_wrong_name_for_a_required_field_is_seen_as_both_mistakes() -> None:
    lines = problems(TEXT.replace("seq_len", "seqlen"))

    assert lines[0].startswith("data.seq_len is missing: tokens per sample")
    assert lines[1] == "data.seqlen = 256: no such field; did you mean seq_len?"


def test_several_mistakes_give_several_lines() -> None:
    assert len(problems(TEXT, "workers.min=0", "schedule.steps=0", "batch.num_waves=0")) == 3


def test_broken_toml_names_the_place() -> None:
    (line,) = problems("version = 1\nname = \n")

    assert line.startswith("this is not valid TOML: ")
    assert "line 2" in line


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1]", "a job is a JSON object, this is [1]"),
        ('{"name": 1, "name": 2}', "name is given twice in one JSON object; keep one of them"),
        ("{\n,", "this is not valid JSON: Expecting property name enclosed in double quotes"),
    ],
)
def test_broken_json_is_explained(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_json(text)

    assert str(caught.value).startswith(message)


def test_values_that_no_format_knows_are_refused_by_name() -> None:
    data = tomllib.loads(TEXT)
    data["schedule"]["steps"] = {1, 2}

    with pytest.raises(SpecError, match=r"schedule.steps = .*must be an integer"):
        parse_data(data)


def test_the_schema_describes_every_field_and_offers_the_presets() -> None:
    schema = job_json_schema()

    assert schema["required"][:2] == ["version", "name"]
    model = schema["$defs"]["ModelSpec"]
    assert "required" not in model
    assert set(PRESETS) < set(model["properties"]["preset"]["enum"])
    assert "healthy workers" in schema["$defs"]["WorkersSpec"]["properties"]["min"]["description"]


def test_a_job_is_frozen() -> None:
    job: JobSpec = parse_toml(TEXT)

    with pytest.raises(ValueError, match="frozen"):
        job.batch.global_samples = 3  # type: ignore[misc]
