"""What a method reads of each person: several crops (config.validation_references), and bodies."""

import numpy as np
import pytest

from data_pipeline.examples.identity.bodies import Bodies
from data_pipeline.pictures.transforms import square_face_crop
from data_pipeline.records.sources import open_records
from persongen_jax.evaluation.people import Evaluation, Person
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.open import open_system
from persongen_jax.training.partition import split_model
from persongen_jax.training.step import merge_model
from tests.evaluation.tiny import OWN, moved, with_config
from tests.helpers.training_runs import changed

FIGURES = "people:out_of_train?identities=2&pictures=2&size=48&framing=figures"


@pytest.fixture
def opened(config, trained):
    """(evaluation, model) of so many references; people have two pictures."""

    def open_(references):
        system, graphdef, trainable, frozen = trained
        own = config.copy_and_resolve_references()
        own.validate_out_of_domain = own.validation_gallery = ""
        own.metrics, own.pose_net = (OWN["brightness"],), ""
        own.validation_images, own.validation_references = 1, references
        model = merge_model(graphdef, moved(trainable, 1), frozen)
        return Evaluation(with_config(system, own)), model

    return open_


def test_the_method_reads_every_crop(opened, config):
    evaluation, model = opened(2)
    result = evaluation(model, 0)["out_of_train"]
    assert result.row["references"] == 2

    pipe = Pipeline.from_system(evaluation.system, model, mesh=evaluation.mesh)
    noise = pipe.draw_latents(config.validation_seed, 2, evaluation.size, evaluation.size)
    records, read = open_records(config.validate_out_of_train, config.trigger_word)
    for i, person in enumerate(evaluation.people["out_of_train"]):
        own = [record for record in records if record.identity == person.identity]
        crops = [square_face_crop(read(record.image), record.face_box) for record in own]
        assert len(crops) == 2

        def generate(references, word=person.word):
            text, given = evaluation.prompts[0].fill(word).place(pipe.streams)
            images = pipe(
                [text],
                config.validation_negative_prompt,
                references=[references],
                **{name: [value] for name, value in given.items()},
                latents=noise[:1],
                options=evaluation.options,
                batch_size=4,
            ).images
            return (images[0] * 255).round()

        made = result.images[i, 0, 0].astype(float)
        assert np.abs(made - generate(crops)).max() <= 1
        assert np.abs(made - generate(crops[:1])).max() > 1
        assert np.abs(made - generate(crops[1:])).max() > 1


def test_who_has_fewer_is_named(opened, config, capsys):
    evaluation, _ = opened(3)
    people = evaluation.people["out_of_train"]
    names = ", ".join(person.identity for person in people)
    source = config.validate_out_of_train
    said = f"{source}: fewer than 3 references of {names}: all are read\n"
    assert len(people) == 2 and said in capsys.readouterr().out
    assert [len(person.crops) for person in people] == [2, 2]
    opened(2)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="validation_references=0: at least 1"):
        opened(0)


def test_a_person_gives_bodies_with_the_joints_of_their_records():
    records, read = open_records(FIGURES)
    own = [record for record in records if record.identity == records[0].identity]
    for count in (1, 2):
        bodies = Person("ann", "woman", own, read, count).given(Bodies(16), 64)
        assert len(bodies) == count
        for body, record in zip(bodies, own, strict=False):
            assert np.array_equal(body.image, read(record.image))
            assert body.keypoints == record.keypoints and any(record.visibility)
            assert body.visibility == record.visibility


@pytest.mark.slow
def test_a_validation_of_bolid_reads_bodies(config, encoders):
    """Its images are those of a call with the same bodies, and not those of one without."""
    own = changed(
        config,
        **{"method": "bolid", "face_encoder": str(encoders / "face_net"), "bolid_reduced": 8},
        **{"validate_out_of_train": FIGURES, "validate_out_of_domain": ""},
        **{"validation_gallery": "", "validation_images": 1, "pose_net": "", "face_net": ""},
        metrics=(OWN["brightness"],),
    )
    system = open_system(own)
    graphdef, trainable, frozen, _ = split_model(system.model, system.table)
    model = merge_model(graphdef, moved(trainable, 1), frozen)
    evaluation = Evaluation(system)
    made = evaluation(model, 0)["out_of_train"].images
    pipe = Pipeline.from_system(system, model, mesh=evaluation.mesh)
    noise = pipe.draw_latents(own.validation_seed, 1, evaluation.size, evaluation.size)
    (bodies,) = (field for field in system.fields if field.name == "bodies")
    for i, person in enumerate(evaluation.people["out_of_train"]):
        text, parts = evaluation.prompts[0].fill(person.word).place(pipe.streams)
        assert not parts

        def generate(given, text=text, person=person):
            images = pipe(
                [text],
                own.validation_negative_prompt,
                references=[person.crops],
                **given,
                latents=noise[:1],
                options=evaluation.options,
                batch_size=4,
            ).images
            return (images[0] * 255).round()

        difference = [
            np.abs(made[i, 0, 0].astype(float) - generate(given)).max()
            for given in ({"bodies": [person.given(bodies, evaluation.size)]}, {})
        ]
        assert difference[0] <= 1 < difference[1]
