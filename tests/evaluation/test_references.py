"""config.validation_references: the method reads several crops of each person."""

import numpy as np
import pytest

from data_pipeline.pictures.transforms import square_face_crop
from data_pipeline.records.sources import open_records
from persongen_jax.evaluation.people import Evaluation
from persongen_jax.pipeline import Pipeline
from persongen_jax.training.step import merge_model
from tests.evaluation.tiny import OWN, moved, with_config


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
