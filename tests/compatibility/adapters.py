"""Adapter files: (kind, variant, what happens, the test that shows it)."""

DIALECTS = "tests/weights/formats/test_lora_dialects.py::"
REFUSED_LORA = "tests/weights/formats/test_lora_refused.py::"
KINDS = "tests/weights/formats/test_lora_kinds.py::"
PIPELINE = "tests/pipeline/test_adapter_kinds.py::"
LORA = "tests/pipeline/test_lora.py::"
EMBEDDINGS = "tests/weights/formats/test_embeddings.py::"
INVERSION = "tests/pipeline/test_textual_inversion.py::"
CONVERT = "tests/convert/test_convert.py::"
IP_ADAPTER = "tests/weights/formats/ip_adapter/test_published.py::"
TRAINING_STATES = "tests/weights/formats/ip_adapter/test_training_states.py::"

SPELLINGS = f"{DIALECTS}test_every_spelling_is_the_same_pair"
FORMULAS = f"{KINDS}test_the_published_formulas_in_float64"
OTHER_BASE = f"{REFUSED_LORA}test_a_lora_of_another_base_is_refused"

ENTRIES = [
    ("LoRA spelling", "diffusers, old and new", "bit-equal", SPELLINGS),
    (
        "LoRA spelling",
        "diffusers' first processors",
        "bit-equal",
        f"{DIALECTS}test_the_first_attention_processors",
    ),
    ("LoRA spelling", "PEFT with an adapter's name", "bit-equal", SPELLINGS),
    (
        "LoRA spelling",
        "PEFT folder, its file, one folder per component",
        "bit-equal",
        f"{DIALECTS}test_a_peft_folder_its_file_and_one_per_component",
    ),
    ("LoRA spelling", "kohya, diffusers' and sgm's blocks", "bit-equal", SPELLINGS),
    ("LoRA spelling", "LyCORIS", "bit-equal", SPELLINGS),
    ("LoRA spelling", "OneTrainer, with dots and with sgm's blocks", "bit-equal", SPELLINGS),
    ("LoRA spelling", "ComfyUI", "bit-equal", SPELLINGS),
    ("LoRA spelling", "no prefix", "bit-equal", SPELLINGS),
    ("LoRA spelling", "compiled, several processes, UNet named twice", "bit-equal", SPELLINGS),
    (
        "LoRA spelling",
        "one image from all",
        "bit-equal",
        f"{LORA}test_one_image_from_one_pair_in_every_spelling",
    ),
    (
        "LoRA spelling",
        "PEFT's file without its config",
        "warning: alpha = rank",
        f"{DIALECTS}test_peft_file_without_its_config_is_warned_of",
    ),
    (
        "LoRA spelling",
        "PEFT: PiSSA not converted, fan_in_fan_out, modules_to_save",
        "refused by name",
        f"{DIALECTS}test_peft_folders_that_mean_something_else",
    ),
    (
        "LoRA spelling",
        "two adapters in one file",
        "refused",
        f"{REFUSED_LORA}test_two_adapters_in_one_file_are_not_mixed",
    ),
    (
        "LoRA of another base",
        "SD 1.x: lora_te_ alone",
        "this is a LoRA for SD 1.x",
        f"{PIPELINE}test_a_lora_of_sd_1_is_refused_whole",
    ),
    (
        "LoRA of another base",
        "SD 1.x, SD 2.x, refiner by width or blocks",
        "refused by name",
        OTHER_BASE,
    ),
    (
        "LoRA of another base",
        "FLUX, SD 3, Cascade, other transformers",
        "refused by name",
        OTHER_BASE,
    ),
    (
        "LoRA of another base",
        "only the notes tell",
        "refused by name",
        f"{REFUSED_LORA}test_notes_tell_where_keys_do_not",
    ),
    ("more than LoRA", "DoRA, over outputs or inputs, on any kind", "exact (1e-5)", FORMULAS),
    ("more than LoRA", "LoHa, LoKr, with cores", "exact (1e-5)", FORMULAS),
    ("more than LoRA", "full difference, with or without bias", "exact (1e-5)", FORMULAS),
    ("more than LoRA", "IA3", "exact (1e-5)", FORMULAS),
    (
        "more than LoRA",
        "PEFT's DoRA, LoHa, LoKr, IA3, lora_bias, rsLoRA",
        "as PEFT merges them",
        f"{KINDS}test_peft_adds_the_same",
    ),
    (
        "more than LoRA",
        "live, any strength, unloaded",
        "as the weights changed",
        f"{PIPELINE}test_live_with_any_strength_equals_the_weights_changed",
    ),
    (
        "more than LoRA",
        "OFT, GLoRA, trained norms and others",
        "refused by name",
        "tests/weights/formats/test_lora_files.py::test_other_kinds_are_named",
    ),
    (
        "more than LoRA",
        "factors that do not go together",
        "one sentence",
        f"{KINDS}test_tensors_that_do_not_go_together",
    ),
    (
        "more than LoRA",
        "bundle_emb",
        "LoRA applied, word usable in prompts",
        "tests/pipeline/test_words.py::test_a_word_is_its_embeddings",
    ),
    (
        "more than LoRA",
        "bundle_emb of another width, or not finite",
        "refused",
        "tests/pipeline/test_words.py::test_embeddings_for_another_base",
    ),
    (
        "more than LoRA",
        "bundle_emb of one tower, output embeddings, a word in no prompt",
        "warning",
        "tests/pipeline/test_words.py::test_words_without_effect_cause_a_warning",
    ),
    (
        "embeddings of words",
        "diffusers' pair, folder, .bin; kohya, A1111, pivotal, cog-sdxl",
        "bit-equal; prompt embeddings as in diffusers",
        f"{EMBEDDINGS}test_the_words_of_other_tools_files",
    ),
    (
        "embeddings of words",
        "SD 1.x's file, one tower of a pair",
        "warning: the other tower reads plain text",
        f"{INVERSION}test_a_tower_without_its_embedding_is_said",
    ),
    (
        "embeddings of words",
        "SD 2.x, SD 3, other widths, nan, no rows, a LoRA",
        "refused by name",
        f"{EMBEDDINGS}test_what_is_refused",
    ),
    (
        "embeddings of words",
        "a word twice, of the vocabulary, in no prompt",
        "warning",
        f"{INVERSION}test_words_come_and_go_with_their_file",
    ),
    (
        "no effect",
        "nothing in the file",
        "refused",
        f"{REFUSED_LORA}test_a_file_with_nothing_in_it",
    ),
    (
        "no effect",
        "weight 0, all zero",
        "warning",
        f"{PIPELINE}test_adapters_without_effect_cause_a_warning",
    ),
    ("no effect", "weight nan, inf, text", "refused", f"{PIPELINE}test_a_weight_that_is_no_number"),
    (
        "LoRA written",
        "diffusers-lora, kohya-lora, peft, comfy",
        "bit-equal",
        f"{CONVERT}test_exported_loras_return_bit_equal",
    ),
    (
        "LoRA written",
        "opened by diffusers",
        "bit-equal",
        f"{CONVERT}test_diffusers_opens_exported_loras",
    ),
    (
        "LoRA written",
        "opened by PEFT",
        "bit-equal",
        f"{CONVERT}test_peft_opens_the_exported_folder",
    ),
    (
        "LoRA written",
        "image in diffusers",
        "within 0.5 of 255",
        f"{LORA}test_what_is_written_is_what_was_loaded",
    ),
    (
        "IP-Adapter training state",
        "adapter_modules, processors, some of each",
        "as the published file",
        f"{TRAINING_STATES}test_a_training_state_is_read_as_the_published_file",
    ),
    (
        "IP-Adapter training state",
        "pickle of several processes",
        "as the published file",
        f"{TRAINING_STATES}test_a_training_state_as_a_pickle_of_several_processes",
    ),
    (
        "IP-Adapter training state",
        "names that differ, or neither",
        "refused",
        f"{TRAINING_STATES}test_a_training_state_whose_halves_differ_or_are_missing",
    ),
]
