"""What happens to base models as people have them: (kind, variant, what happens, test)."""

FILE, BASE = "tests/weights/test_base_files.py", "base model"
SAMPLING = "scheduler config"

ENTRIES = [
    (
        BASE,
        "note modelspec.prediction_type: v",
        "v-prediction, with a warning",
        "a_marker_is_as_good_as_a_config[modelspec v]",
    ),
    (
        BASE,
        "note prediction_type: v_prediction",
        "v-prediction, with a warning",
        "a_marker_is_as_good_as_a_config[prediction_type]",
    ),
    (
        BASE,
        "note modelspec.predict_key: v",
        "v-prediction, with a warning",
        "a_marker_is_as_good_as_a_config[predict_key]",
    ),
    (
        BASE,
        "notes ss_v_parameterization, ss_zero_terminal_snr",
        "v-prediction, zero terminal SNR",
        "a_marker_is_as_good_as_a_config[kohya]",
    ),
    (
        BASE,
        "tensors v_pred and ztsnr",
        "v-prediction, zero terminal SNR",
        "a_marker_is_as_good_as_a_config[tensors]",
    ),
    (
        BASE,
        "tensor v_pred behind the UNet's prefix",
        "v-prediction",
        "a_marker_is_as_good_as_a_config[behind the unet's prefix]",
    ),
    (
        BASE,
        "markers within a directory's UNet",
        "v-prediction, with a warning",
        "a_marker_within_a_directory",
    ),
    (
        BASE,
        "marker epsilon, config v_prediction",
        "epsilon, with a warning; --prediction-type decides",
        "epsilon_marked_and_v_configured_is_not_silent",
    ),
    (
        BASE,
        "markers that contradict each other",
        "refused; --prediction-type decides",
        "markers_that_cannot_be_followed",
    ),
    (
        BASE,
        "EDM's marker tensors",
        "refused before weights are read",
        "markers_that_cannot_be_followed",
    ),
    (
        SAMPLING,
        "EDMDPMSolverMultistepScheduler",
        "refused with any sampler",
        "a_scheduler_that_says_something_else[edm]",
    ),
    (
        SAMPLING,
        "EDMEulerScheduler",
        "refused with any sampler",
        "a_scheduler_that_says_something_else[edm euler]",
    ),
    (
        SAMPLING,
        "FlowMatchEulerDiscreteScheduler",
        "refused with any sampler",
        "a_scheduler_that_says_something_else[flow]",
    ),
    (
        SAMPLING,
        "UniPC with use_flow_sigmas",
        "refused with any sampler",
        "a_scheduler_that_says_something_else[flow sigmas]",
    ),
    (
        SAMPLING,
        "timestep_type: continuous",
        "refused with any sampler",
        "a_scheduler_that_says_something_else[continuous]",
    ),
    (
        SAMPLING,
        'beta_end: "0.012"',
        "one sentence",
        "a_scheduler_that_says_something_else[text for a number]",
    ),
    (
        SAMPLING,
        'rescale_betas_zero_snr: "false"',
        "one sentence",
        "a_scheduler_that_says_something_else[text for a flag]",
    ),
    (
        SAMPLING,
        "timestep_spacing, steps_offset: null",
        "diffusers' default",
        "null_is_what_diffusers_takes",
    ),
    (
        SAMPLING,
        "UniPC, Heun, LCM, TCD, DEIS",
        "refused, --scheduler named",
        "a_sampler_that_is_not_here_names_the_flag",
    ),
    (
        BASE,
        "inpainting directory, in_channels 9",
        "refused at the config",
        "other_unets_are_refused_at_the_config",
    ),
    (BASE, "SD 1.5's directory", '"this is SD 1.x"', "other_unets_are_refused_at_the_config"),
    (BASE, "SD 1.5's UNet as a file", '"this is SD 1.x"', "a_unet_of_another_family_as_a_file"),
    (BASE, "FLUX as a file", '"this is FLUX"', "a_unet_of_another_family_as_a_file"),
    (
        BASE,
        "a VAE's or another model's directory",
        "said what it is",
        "directories_that_are_no_sdxl",
    ),
    (
        BASE,
        "extra alphas_cumprod, betas, global_step",
        "ignored with a line",
        "known_extras_are_ignored_with_a_line",
    ),
    (BASE, "UNet alone, sgm names", "read with a base's other parts", "a_unet_alone[sgm]"),
    (
        BASE,
        "UNet alone, sgm names, no prefix",
        "read with a base's other parts",
        "a_unet_alone[sgm, flat]",
    ),
    (
        BASE,
        "UNet alone, diffusers names, flat",
        "read with a base's other parts",
        "a_unet_alone[diffusers, flat]",
    ),
    (
        BASE,
        "UNet alone, behind unet.",
        "read with a base's other parts",
        "a_unet_alone[diffusers, unet.]",
    ),
    (BASE, "no VAE; a VAE alone in three spellings", "--vae named, and read", "a_vae_alone"),
    (BASE, "no text encoders", "--text-encoders named, and read", "no_text_encoders"),
    (BASE, "text encoders in files of their own", "read", "text_encoders_in_files_of_their_own"),
    (BASE, "VAE of another scaling_factor", "refused", "a_vae_alone"),
    (BASE, "a LoRA, a GGUF file, a web page", "said what it is", "files_that_are_no_base"),
    (BASE, ".ckpt with state_dict", "read (extra convert)", "a_pickled_checkpoint"),
    (BASE, "a pickle named .safetensors", "told to rename it", "a_pickled_checkpoint"),
    (
        BASE,
        "scaled fp8, scale_weight",
        "weight x scale, exactly, with a line",
        "scaled_fp8_is_multiplied_out",
    ),
    (
        BASE,
        "scaled fp8, weight_scale and notes",
        "weight x scale, exactly, with a line",
        "scaled_fp8_is_multiplied_out",
    ),
    (BASE, "plain fp8", "read, with a line", "plain_fp8_says_how_coarse_it_is"),
    (
        BASE,
        "int8, NVFP4, bitsandbytes, 4-bit, per block",
        "refused by name",
        "other_quantisations_are_named",
    ),
]
ENTRIES = [
    (kind, variant, happens, f"{FILE}::test_{test}") for kind, variant, happens, test in ENTRIES
]
