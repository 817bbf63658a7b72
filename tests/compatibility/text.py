"""Text, prompts, options and the workdir: kind, variant, what happens, and its test."""

FILES = "tests/data_pipeline/test_text_files.py"
TRIGGER = "tests/data_pipeline/test_trigger_word.py"
PROMPTS = "tests/data_pipeline/test_prompts.py"
CALLS = "tests/pipeline/test_call_checks.py"
GENERATE = "tests/generate/test_generate_text.py"
WORKDIR = "tests/training/test_workdir.py"
FEATURES = "tests/features/test_features_finite.py"
TEXTS = "tests/data_pipeline/examples/test_text.py"

ENTRIES = [
    *(
        ("text files", variant, result, f"{FILES}::{test}")
        for variant, result, test in (
            (
                "UTF-8, UTF-16 and UTF-32 with a byte order mark",
                "read, the mark is removed",
                "test_byte_order_marks_are_removed_and_set_the_encoding",
            ),
            (
                "several marks; marks at later lines (joined files)",
                "taken off",
                "test_marks_where_files_were_put_together",
            ),
            (
                "UTF-16 or UTF-32 without a mark",
                'refused: "saved as UTF-16: save it as UTF-8"',
                "test_utf16_without_its_mark_is_refused",
            ),
            (
                "Latin-1, cp1252, half pairs, cut UTF-16, NUL",
                "refused with file and line",
                "test_bytes_that_are_not_text_are_reported_with_their_line",
            ),
            (
                r"lines ending at \n, \r\n, \r; U+2028, U+0085, \v, \f inside",
                "lines end at the first three only",
                "test_lines_end_at_line_ends_only",
            ),
            (
                "JSON broken, too deep, with half a character",
                "refused with file and line",
                "test_broken_json",
            ),
            ("manifest with a mark, UTF-16", "read", "test_a_manifest_from_windows"),
            (
                "manifest that is not text",
                "refused with the line",
                "test_a_manifest_that_is_no_text",
            ),
            ("CSV from a spreadsheet", "read", "test_a_table_from_a_spreadsheet"),
        )
    ),
    (
        "text files",
        "prompt file with a mark, UTF-16, U+2028",
        "read",
        f"{GENERATE}::test_a_prompt_file_from_windows",
    ),
    (
        "text files",
        "tokenizer files with a mark, UTF-16, CRLF",
        "the same tokens",
        f"{PROMPTS}::test_tokenizer_files_that_an_editor_has_saved",
    ),
    *(
        ("trigger word", variant, result, f"{TRIGGER}::{test}")
        for variant, result, test in (
            (
                "zero-width characters, soft hyphen, mark, direction marks around it",
                "left out",
                "test_invisible_characters_around_the_trigger_are_left_out",
            ),
            (
                "such characters in the class word",
                "left out",
                "test_invisible_characters_in_the_class_word_are_left_out",
            ),
            (
                "男人img, man_img, img2, imgs, manimg",
                '"not as a word of its own"',
                "test_a_trigger_that_is_no_word_of_its_own",
            ),
            (
                "with a soft hyphen or joiner inside",
                "refused, the character named",
                "test_a_trigger_with_an_invisible_character_inside",
            ),
            ("empty, two words, invisible", "refused", "test_a_trigger_word_that_is_no_word"),
        )
    ),
    *(
        (kind, variant, result, f"{CALLS}::{test}")
        for kind, variant, result, test in (
            (
                "cut text",
                "prompt or negative prompt in Python",
                "warning with the lost part",
                "test_cut_text_causes_a_warning_in_python_too",
            ),
            (
                "cut text",
                "class word repeated for references",
                "warning with the lost part",
                "test_copies_of_the_class_word_take_room",
            ),
            (
                "start_merge_step",
                "not given",
                "a fifth of the steps, never the last",
                "test_the_default_merge_step_follows_the_steps",
            ),
            (
                "start_merge_step, strengths",
                "too late; 0 wherever they act; ranges without a step",
                "warning",
                "test_references_and_strengths_without_effect_cause_a_warning",
            ),
            (
                "wrong types",
                "None, numbers, bytes, arrays, empty list, half characters",
                "one sentence",
                "test_texts_of_the_wrong_kind_are_one_sentence",
            ),
            (
                "wrong types",
                "steps, sizes, seeds, scales that are no numbers",
                "one sentence",
                "test_numbers_of_the_wrong_kind_are_one_sentence",
            ),
            (
                "wrong types",
                "empty prompt with a reference",
                "one sentence",
                "test_an_empty_prompt_with_a_reference_is_one_sentence",
            ),
            (
                "no effect",
                "negative prompt, rescale, seed, tiles, merge step",
                "warning",
                "test_options_without_effect_cause_a_warning",
            ),
            (
                "no effect",
                "LoRA of weight 0; trigger word without references",
                "warning",
                "test_a_lora_of_weight_0_and_a_trigger_without_references",
            ),
        )
    ),
    (
        "no effect",
        "generate: --detector, --no-crop, --image-encoder alone",
        "a line",
        f"{GENERATE}::test_options_without_effect_are_lines",
    ),
    (
        "schedule",
        "runs saved before schedule_steps existed",
        "refused; convert upgrade keeps the curve",
        "tests/convert/test_upgrade.py::test_a_rate_that_fell_until_the_last_step_keeps_its_curve",
    ),
    (
        "cut text",
        "training captions over 77 tokens",
        "counted and shown once",
        f"{TEXTS}::test_captions_that_are_cut_are_counted_and_shown_once",
    ),
    *(
        (kind, variant, result, f"{WORKDIR}::{test}")
        for kind, variant, result, test in (
            (
                "schedule",
                "steps raised or lowered at resume",
                "the schedule does not change; a line says so",
                "test_more_steps_keep_the_schedule",
            ),
            (
                "schedule",
                "another schedule_steps at resume",
                "refused",
                "test_another_end_of_the_schedule_is_another_run",
            ),
            (
                "schedule",
                "more steps after the rate has come to 0",
                "refused with the way",
                "test_log_lines_about_the_schedule",
            ),
            (
                "steps",
                "fewer than reached",
                "refused",
                "test_the_command_refuses_fewer_steps",
            ),
            (
                "workdir",
                "a second run",
                '"process N on host H is training here"',
                "test_a_second_run_names_the_first",
            ),
            (
                "workdir",
                "left by a killed run",
                "taken over",
                "test_a_killed_run_leaves_nothing_to_clear_away",
            ),
            (
                "workdir",
                "file system without locks",
                "checks whether the process still runs",
                "test_where_the_file_system_locks_nothing_the_process_is_looked_for",
            ),
            (
                "workdir",
                "lock of another host",
                "refused while its heartbeat continues, then taken over",
                "test_a_lock_of_another_host_holds_while_its_time_goes_on",
            ),
            (
                "checkpoints",
                "partly copied, with and without digests",
                "skipped",
                "test_a_partial_copy_of_a_checkpoint_is_skipped",
            ),
            (
                "checkpoints",
                "files with names like steps",
                "skipped",
                "test_files_with_names_like_steps_are_no_checkpoints",
            ),
        )
    ),
    (
        "no effect",
        "train: keys that other keys or the method make idle",
        "a line",
        f"{WORKDIR}::test_keys_without_effect_are_reported",
    ),
    (
        "feature cache",
        "a picture that overflows; NaN rows stored before",
        "reported, not stored, skipped",
        f"{FEATURES}::test_values_that_are_not_finite_are_logged_and_not_stored",
    ),
    (
        "not finite",
        "training steps in a row",
        "the pictures are named",
        "tests/training/test_checkpoint.py::test_bad_steps_in_a_row_end_the_run",
    ),
    (
        "text files",
        "a manifest's key twice, numbers of 400 digits, names of 300 letters",
        "refused with the line",
        "tests/data_pipeline/records/test_manifest.py::test_bad_lines",
    ),
    (
        "tokenizer",
        "merges.txt cut or empty",
        "refused",
        f"{PROMPTS}::test_a_cut_merges_file_is_refused",
    ),
    (
        "tokenizer",
        "other files in its folder",
        "not read",
        f"{PROMPTS}::test_what_else_lies_in_a_tokenizers_folder_does_not_matter",
    ),
    (
        "prompt syntax",
        "(x:1.5), ((x)), (x)++, [x], BREAK, AND, <lora:>, embedding:, {a|b}, __x__",
        "plain text, warned of, in training's captions too",
        "tests/data_pipeline/test_prompt_syntax.py::test_syntax_of_other_programs_causes_a_warning",
    ),
    (
        "prompt syntax",
        "(ratio 16:9), at (10:30), C++, A MAN AND A DOG",
        "no warning",
        "tests/data_pipeline/test_prompt_syntax.py::test_plain_text_is_not_mistaken_for_syntax",
    ),
    (
        "prompt syntax",
        "texts of 50,000 signs",
        "no time lost",
        "tests/data_pipeline/test_prompt_syntax.py::test_long_texts_take_no_time",
    ),
    (
        "wrong types",
        "paths, names, dtypes, strengths, sizes",
        "one sentence",
        f"{CALLS}::test_paths_and_names_of_the_wrong_kind",
    ),
    (
        "wrong numbers",
        "probabilities, decays, rates out of range in a config",
        "refused before anything is opened",
        f"{WORKDIR}::test_numbers_that_mean_nothing",
    ),
    (
        "no effect",
        "train: keys that the method does not read",
        "a line",
        f"{WORKDIR}::test_keys_that_a_method_does_not_read",
    ),
    (
        "outputs",
        "a folder that cannot be written",
        "refused before any image",
        "tests/generate/test_generate.py::test_a_folder_that_cannot_be_written_costs_no_image",
    ),
]
