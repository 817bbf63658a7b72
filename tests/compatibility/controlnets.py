"""ControlNets, their images, and skeletons."""

FORMATS = "tests/weights/formats/test_controlnet.py::"
PIPELINE = "tests/pipeline/control/test_controlnet_pipeline.py::"
OTHER_FORMS = f"{FORMATS}test_other_forms"
RUNS = "tests/methods/test_controlnet.py::"

ENTRIES = [
    ("ControlNet", "diffusers' folder", "loaded; written back bit-equal")
    + (f"{FORMATS}test_written_back_bit_equal",),
    ("ControlNet", "fp16 variant", "loaded", f"{OTHER_FORMS}[fp16]"),
    ("ControlNet", ".bin, torch's own file", "loaded", f"{OTHER_FORMS}[bin]"),
    ("ControlNet", "the weight file alone, with any name", "loaded", f"{OTHER_FORMS}[file]"),
    (
        "ControlNet",
        "`controlnet/` in a pipeline's folder",
        "loaded",
        f"{OTHER_FORMS}[in a pipeline]",
    ),
    ("ControlNet", "config with null entries", "loaded", f"{OTHER_FORMS}[null]"),
    ("ControlNet", "a run of the method `controlnet`", "loaded; exported for diffusers")
    + (f"{RUNS}test_a_run_is_loaded_exported_and_read_by_diffusers",),
    ("ControlNet", "a run of another method", "refused")
    + (f"{RUNS}test_a_run_of_another_method_is_refused",),
    ("ControlNet", "made for another base", "refused, loaded ones stay")
    + (f"{PIPELINE}test_one_for_another_base_is_refused_and_loaded_ones_stay",),
    ("ControlNet", "no ControlNet, or another kind of it", "refused")
    + (f"{FORMATS}test_what_is_none",),
    ("control image", "another size or aspect ratio", "resized; stretching is said")
    + (f"{PIPELINE}test_what_is_stretched_or_idle_is_said",),
    ("control image", "without height and width", "gives the size")
    + (f"{PIPELINE}test_the_size_is_the_control_images",),
    ("control image", "a number, window or scale that does not fit", "refused")
    + (f"{PIPELINE}test_bad_arguments_are_named",),
]
